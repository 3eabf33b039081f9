/** Builds a GenerateRequest or an ExplainRequest from options. Pure. */
import { create } from "@bufbuild/protobuf";

import {
  type ExplainRequest,
  ExplainRequestSchema,
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
 * Options of every call. Omitted options take the service's defaults.
 *
 * Prompt: exactly one of `prompt` (text, without a chat template), `messages` (rendered with the target's chat
 * template, together with `tools`) and `tokenIds` (used unchanged, with `protectedSpans` of token positions, [start,
 * end)).
 *
 * Limits: in tokens, except `maxTtftMs` (compared with a predicted time) and `minCoverage` (0..1, compared with the
 * coverage of the draft's mask or, if the target selects KV, with the draft's estimate). `autoCoverage` (0..1) takes
 * the smallest capacity that reaches it, between `autoMinTokens` and `autoMaxTokens`.
 *
 * KV, on routes that drop KV: `continuePromptTokens` is the `promptTokens` of an earlier decision whose prompt this
 * one begins with (on "auto" too). `deadlineMs` is for the whole call; `signal` cancels it at every service.
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

/** Options of `generate` and `stream`: those of the prompt, and how the answer is sampled. */
export interface Options extends PromptOptions {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly seed?: number | bigint;
  readonly stop?: readonly string[];
  readonly stopTokenIds?: readonly number[];
  readonly ignoreEos?: boolean;
}

/** Options of `explain`. Nothing is generated: the context check and the predictions assume `maxNewTokens`. */
export interface ExplainOptions extends PromptOptions {
  /** Makes every token a span, instead of runs. */
  readonly spanPerToken?: boolean;
}

// Plain JavaScript callers have no compiler to check their options: unknown ones are refused, not ignored.
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
 * Throws TypeError for an unknown option, route or selection, bounds without autoCoverage, a malformed message, or not
 * exactly one prompt; InvalidRequest for text that is not valid Unicode.
 */
export function generateRequest(options: Options): GenerateRequest {
  checkKnown(options, OPTIONS);
  return create(GenerateRequestSchema, {
    ...commonFields(options),
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

/** Throws as `generateRequest` does. */
export function explainRequest(options: ExplainOptions): ExplainRequest {
  checkKnown(options, EXPLAIN_OPTIONS);
  const { maxNewTokens, spanPerToken = false } = options;
  return create(ExplainRequestSchema, { ...commonFields(options), maxNewTokens, spanPerToken });
}

function commonFields(options: PromptOptions) {
  return {
    prompt: promptOf(options),
    route: enumValue("route", options.route ?? "auto", ROUTES),
    budget: budgetOf(options),
    kv: kvOf(options),
  };
}

function promptOf({ prompt, messages, tokenIds, tools = [], protectedSpans = [] }: PromptOptions): Prompt {
  if ([prompt, messages, tokenIds].filter((each) => each !== undefined).length !== 1) {
    throw new TypeError("give exactly one of prompt, messages and tokenIds");
  }
  if (tools.length && messages === undefined) {
    throw new TypeError("tools require messages: prompt and tokenIds are not rendered with the chat template");
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
    throw new TypeError("autoMinTokens and autoMaxTokens require autoCoverage");
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
  const selection = kvSelection === undefined ? undefined : enumValue("kvSelection", kvSelection, SELECTIONS);
  return { selection, keepFullPrefix, lookaheadTokens, continuePromptTokens };
}

function enumValue<Value>(option: string, name: string, known: Readonly<Record<string, Value>>): Value {
  const value = Object.hasOwn(known, name) ? known[name] : undefined;
  if (value !== undefined) return value;
  throw new TypeError(`${option} is ${JSON.stringify(name)}; it must be one of ${Object.keys(known).join(", ")}`);
}

function checkKnown(options: object, known: object): void {
  const unknown = Object.keys(options).filter((name) => !Object.hasOwn(known, name));
  if (unknown.length) throw new TypeError(`unknown option ${unknown.sort().join(", ")}`);
}
