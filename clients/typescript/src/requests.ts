/** From options to a GenerateRequest or an ExplainRequest. Pure. */
import { create } from "@bufbuild/protobuf";

import { type ExplainRequest, ExplainRequestSchema } from "./gen/presift/v1/orchestrator_pb.js";
import {
  type GenerateRequest,
  GenerateRequestSchema,
  type Prompt,
  PromptSchema,
} from "./gen/presift/v1/orchestrator_pb.js";
import { KvSelection, Route } from "./gen/presift/v1/plan_pb.js";
import { type ChatMessage, chatOf, writable } from "./messages.js";

/** "auto", "full", "spec_pc" and the other routes of plan.proto. */
export type RouteName = Exclude<Lowercase<keyof typeof Route>, "unspecified">;

/**
 * What every call takes. What is left out takes the service's default.
 *
 * Exactly one of `prompt` (text, read as it is), `messages` (rendered with the target's chat template, `tools` with them)
 * and `tokenIds` (read as they are; `protectedSpans` are token positions, [start, end)). Limits are in tokens;
 * `maxTtftMs` is held against a predicted time, `minCoverage` (0..1) against the draft's mask or, where the target chooses
 * KV, its estimate; `autoCoverage` (0..1) takes the smallest capacity that reaches it, between `autoMinTokens` and
 * `autoMaxTokens`. On routes that drop KV: `continuePromptTokens` is the `promptTokens` of an earlier decision with
 * whose prompt this one begins (on "auto" too). `deadlineMs` is for the whole call; `signal` cancels it, everywhere.
 */
export interface PromptOptions {
  readonly prompt?: string;
  readonly messages?: readonly ChatMessage[];
  readonly tools?: readonly object[];
  readonly tokenIds?: readonly number[];
  readonly protectedSpans?: readonly (readonly [number, number])[];
  readonly route?: RouteName;
  readonly maxPromptTokens?: number;
  readonly maxKvTokens?: number;
  readonly strict?: boolean;
  readonly compressAboveTokens?: number;
  readonly maxTtftMs?: number;
  readonly minCoverage?: number;
  readonly autoCoverage?: number;
  readonly autoMinTokens?: number;
  readonly autoMaxTokens?: number;
  readonly kvSelection?: "target_lookahead" | "draft_mask";
  readonly keepFullPrefix?: boolean;
  readonly kvLookaheadTokens?: number;
  readonly continuePromptTokens?: number;
  readonly maxNewTokens?: number;
  readonly deadlineMs?: number;
  readonly signal?: AbortSignal;
}

/** What `generate` and `stream` take: the prompt's options, and how the answer is chosen. */
export interface Options extends PromptOptions {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly seed?: number | bigint;
  readonly stop?: readonly string[];
  readonly stopTokenIds?: readonly number[];
  readonly ignoreEos?: boolean;
}

/** What `explain` takes; nothing is generated: room is left and time predicted for `maxNewTokens`. */
export interface ExplainOptions extends PromptOptions {
  /** A span of every token, instead of runs with one fate. */
  readonly spanPerToken?: boolean;
}

// A compiler checks options only where there is one: what is not known is refused, never passed over.
const PROMPT_OPTIONS: Record<keyof Required<PromptOptions>, true> = {
  prompt: true,
  messages: true,
  tools: true,
  tokenIds: true,
  protectedSpans: true,
  route: true,
  maxPromptTokens: true,
  maxKvTokens: true,
  strict: true,
  compressAboveTokens: true,
  maxTtftMs: true,
  minCoverage: true,
  autoCoverage: true,
  autoMinTokens: true,
  autoMaxTokens: true,
  kvSelection: true,
  keepFullPrefix: true,
  kvLookaheadTokens: true,
  continuePromptTokens: true,
  maxNewTokens: true,
  deadlineMs: true,
  signal: true,
};
const OPTIONS: Record<keyof Required<Options>, true> = {
  ...PROMPT_OPTIONS,
  temperature: true,
  topP: true,
  topK: true,
  seed: true,
  stop: true,
  stopTokenIds: true,
  ignoreEos: true,
};
const EXPLAIN_OPTIONS: Record<keyof Required<ExplainOptions>, true> = { ...PROMPT_OPTIONS, spanPerToken: true };
const ROUTES = Object.fromEntries(
  // Without the names that a TypeScript enum has by number.
  Object.entries(Route).flatMap(([name, route]) =>
    typeof route === "number" && route !== Route.UNSPECIFIED ? [[name.toLowerCase(), route]] : [],
  ),
) as Record<RouteName, Route>;
const SELECTIONS = { target_lookahead: KvSelection.TARGET_LOOKAHEAD, draft_mask: KvSelection.DRAFT_MASK };

/**
 * Throws TypeError for an unknown option, route or selection, for bounds without autoCoverage, for a message that is none,
 * or unless there is exactly one prompt; InvalidRequest for text that has no UTF-8.
 */
export function generateRequest(options: Options): GenerateRequest {
  checkKnown(options, OPTIONS);
  return create(GenerateRequestSchema, {
    ...asked(options),
    sampling: {
      maxNewTokens: options.maxNewTokens,
      temperature: options.temperature,
      topP: options.topP,
      topK: options.topK,
      seed: options.seed === undefined ? undefined : BigInt(options.seed),
      stop: (options.stop ?? []).map((text) => writable("stop", text)),
      stopTokenIds: [...(options.stopTokenIds ?? [])],
      ignoreEos: options.ignoreEos ?? false,
    },
  });
}

/** Throws as `generateRequest`. */
export function explainRequest(options: ExplainOptions): ExplainRequest {
  checkKnown(options, EXPLAIN_OPTIONS);
  const { maxNewTokens, spanPerToken = false } = options;
  return create(ExplainRequestSchema, { ...asked(options), maxNewTokens, spanPerToken });
}

function asked(options: PromptOptions) {
  return {
    prompt: promptOf(options),
    route: named("route", options.route ?? "auto", ROUTES),
    budget: budgetOf(options),
    kv: kvOf(options),
  };
}

function promptOf({ prompt, messages, tokenIds, tools = [], protectedSpans = [] }: PromptOptions): Prompt {
  if ([prompt, messages, tokenIds].filter((given) => given !== undefined).length !== 1) {
    throw new TypeError("give exactly one of prompt, messages and tokenIds");
  }
  if (tools.length && messages === undefined) {
    throw new TypeError("tools go with messages: prompt and tokenIds are read as they are");
  }
  const spans = protectedSpans.map(([start, end]) => ({ start, end }));
  if (tokenIds !== undefined) {
    return create(PromptSchema, { prompt: { case: "tokenIds", value: { ids: [...tokenIds] } }, protectedSpans: spans });
  }
  if (prompt !== undefined) {
    return create(PromptSchema, { prompt: { case: "text", value: writable("prompt", prompt) }, protectedSpans: spans });
  }
  return create(PromptSchema, {
    prompt: { case: "chat", value: chatOf(messages ?? [], tools) },
    protectedSpans: spans,
  });
}

function budgetOf(options: PromptOptions) {
  const { maxPromptTokens, maxKvTokens, strict = false, compressAboveTokens, maxTtftMs, minCoverage } = options;
  const { autoCoverage, autoMinTokens: minTokens, autoMaxTokens: maxTokens } = options;
  if (autoCoverage === undefined && (minTokens ?? maxTokens) !== undefined) {
    throw new TypeError("autoMinTokens and autoMaxTokens go with autoCoverage");
  }
  const autoCapacity = autoCoverage === undefined ? undefined : { coverage: autoCoverage, minTokens, maxTokens };
  return { maxPromptTokens, maxKvTokens, strict, compressAboveTokens, maxTtftMs, minCoverage, autoCapacity };
}

function kvOf({
  kvSelection,
  keepFullPrefix,
  kvLookaheadTokens: lookaheadTokens,
  continuePromptTokens,
}: PromptOptions) {
  const selection = kvSelection === undefined ? undefined : named("kvSelection", kvSelection, SELECTIONS);
  return { selection, keepFullPrefix, lookaheadTokens, continuePromptTokens };
}

function named<Value>(option: string, name: string, known: Readonly<Record<string, Value>>): Value {
  const value = Object.hasOwn(known, name) ? known[name] : undefined;
  if (value !== undefined) return value;
  throw new TypeError(`${option} is ${JSON.stringify(name)}; it must be one of ${Object.keys(known).join(", ")}`);
}

function checkKnown(options: object, known: object): void {
  const unknown = Object.keys(options).filter((name) => !Object.hasOwn(known, name));
  if (unknown.length) throw new TypeError(`unknown option ${unknown.sort().join(", ")}`);
}
