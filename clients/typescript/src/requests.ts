/** Builds a GenerateRequest or an ExplainRequest from options. Pure. */
import { create } from "@bufbuild/protobuf";

import {
  type ExplainRequest,
  ExplainRequestSchema,
  type GenerateRequest,
  GenerateRequestSchema,
  KvLookahead,
  type Prompt,
  PromptSchema,
} from "./gen/presift/v1/orchestrator_pb.js";
import { KvSelection, Route } from "./gen/presift/v1/plan_pb.js";
import { ToolChoice } from "./gen/presift/v1/target_pb.js";
import { type ChatMessage, chatOf, writable } from "./messages.js";

/** "auto", "full", "spec_pc" and the other routes of plan.proto. */
export type RouteName = Exclude<Lowercase<keyof typeof Route>, "unspecified">;

/**
 * Options of every call. Omitted options take the service's defaults.
 *
 * Prompt: exactly one of `prompt` (text, without a chat template), `messages` (rendered with the target's chat
 * template, together with `tools`) and `tokenIds` (used unchanged, with `protectedSpans` of token positions, [start,
 * end)). `templateKwargs` are further variables of the chat template, e.g. `{ enable_thinking: false }`; with
 * `continueFinalMessage` the answer continues the last message.
 *
 * Limits: in tokens, except `maxTtftMs` (compared with a predicted time) and `minCoverage` (0..1, compared with the
 * coverage of the draft's mask or, if the target selects KV, with the draft's estimate). `autoCoverage` (0..1) takes
 * the smallest capacity that reaches it, between `autoMinTokens` and `autoMaxTokens`.
 *
 * KV, on routes that drop KV: `kvLookahead` is who makes the lookahead: "draft", "target" (the answer itself, whose
 * first `firstFullTokens` are generated on the full KV) or "auto". Every `renewEvery` tokens (0: never), or sooner after
 * a token that is rare in the prompt and new in the answer, the target selects anew, by the newest `renewWindow` tokens.
 * `continuePromptTokens` is the `promptTokens` of an earlier decision whose prompt this one begins with (on "auto" too).
 * `deadlineMs` is for the whole call; `signal` cancels it at every service.
 */
export interface PromptOptions {
  readonly prompt?: string;
  readonly messages?: readonly ChatMessage[];
  readonly tools?: readonly object[];
  readonly templateKwargs?: Readonly<Record<string, unknown>>;
  readonly continueFinalMessage?: boolean;
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
  readonly kvLookahead?: "draft" | "target" | "auto";
  readonly renewEvery?: number;
  readonly renewWindow?: number;
  readonly firstFullTokens?: number;
  readonly maxNewTokens?: number;
  readonly deadlineMs?: number;
  readonly signal?: AbortSignal;
}

/**
 * Options of `generate` and `stream`: those of the prompt, how the answer is sampled, and its form.
 *
 * `choices` answers are generated; with a `seed`, answer i uses seed + i. `jsonSchema` (a schema, or its text), `regex`,
 * `ebnf` or `structuralTag` restricts the answer: give one of them at most. `toolChoice` is "auto", "required", "none"
 * (the model sees the tools, but calls and reasoning stay in the text), or the name of a tool that must be called.
 * `topLogprobs` asks for the log probability of each token and of that many others, `promptLogprobs` for those of the
 * prompt too (route full). `rawText` leaves reasoning and tool calls in the text. `migrate` lets another target continue
 * the answer if its target is lost (GenerateRequest.migrate in orchestrator.proto says when).
 */
export interface Options extends PromptOptions {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly seed?: number | bigint;
  readonly stop?: readonly string[];
  readonly stopTokenIds?: readonly number[];
  readonly ignoreEos?: boolean;
  readonly minP?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  readonly repetitionPenalty?: number;
  readonly logitBias?: Readonly<Record<number, number>>;
  readonly minNewTokens?: number;
  readonly jsonSchema?: object | string;
  readonly regex?: string;
  readonly ebnf?: string;
  readonly structuralTag?: object | string;
  readonly topLogprobs?: number;
  readonly promptLogprobs?: boolean;
  readonly keepSpecialTokens?: boolean;
  readonly choices?: number;
  readonly toolChoice?: string;
  readonly parallelToolCalls?: boolean;
  readonly rawText?: boolean;
  readonly migrate?: boolean;
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
  templateKwargs: true,
  continueFinalMessage: true,
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
  kvLookahead: true,
  renewEvery: true,
  renewWindow: true,
  firstFullTokens: true,
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
  minP: true,
  presencePenalty: true,
  frequencyPenalty: true,
  repetitionPenalty: true,
  logitBias: true,
  minNewTokens: true,
  jsonSchema: true,
  regex: true,
  ebnf: true,
  structuralTag: true,
  topLogprobs: true,
  promptLogprobs: true,
  keepSpecialTokens: true,
  choices: true,
  toolChoice: true,
  parallelToolCalls: true,
  rawText: true,
  migrate: true,
};
const EXPLAIN_OPTIONS: Record<keyof Required<ExplainOptions>, true> = { ...PROMPT_OPTIONS, spanPerToken: true };
const ROUTES = Object.fromEntries(
  // Without the names that a TypeScript enum has by number.
  Object.entries(Route).flatMap(([name, route]) =>
    typeof route === "number" && route !== Route.UNSPECIFIED ? [[name.toLowerCase(), route]] : [],
  ),
) as Record<RouteName, Route>;
const SELECTIONS = { target_lookahead: KvSelection.TARGET_LOOKAHEAD, draft_mask: KvSelection.DRAFT_MASK };
const LOOKAHEADS = { draft: KvLookahead.DRAFT, target: KvLookahead.TARGET, auto: KvLookahead.AUTO };

/**
 * Throws TypeError for an unknown option, route, selection or lookahead, bounds without autoCoverage, several grammars, a malformed
 * message, or not exactly one prompt; InvalidRequest for text that is not valid Unicode.
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
      minP: options.minP,
      presencePenalty: options.presencePenalty,
      frequencyPenalty: options.frequencyPenalty,
      repetitionPenalty: options.repetitionPenalty,
      logitBias: { ...options.logitBias },
      minNewTokens: options.minNewTokens,
      grammar: grammarOf(options),
      topLogprobs: options.topLogprobs,
      promptLogprobs: options.promptLogprobs ?? false,
      keepSpecialTokens: options.keepSpecialTokens ?? false,
    },
    choices: options.choices,
    singleToolCall: options.parallelToolCalls === false,
    migrate: options.migrate ?? false,
    ...toolChoiceOf(options),
  });
}

function grammarOf({ jsonSchema, regex, ebnf, structuralTag }: Options) {
  const given = Object.entries({ jsonSchema, regex, ebnf, structuralTag }).filter(
    ([, grammar]) => grammar !== undefined,
  );
  if (given.length > 1) throw new TypeError(`give one of ${given.map(([name]) => name).join(" and ")}`);
  const [name, grammar] = given[0] ?? [];
  if (name === undefined) return undefined;
  const text = writable(name, typeof grammar === "string" ? grammar : JSON.stringify(grammar));
  return { case: name as "jsonSchema" | "regex" | "ebnf" | "structuralTag", value: text };
}

function toolChoiceOf({ toolChoice = "auto", rawText = false }: Options) {
  if (toolChoice === "auto" || toolChoice === "none") return { rawText: rawText || toolChoice === "none" };
  if (toolChoice === "required") return { toolChoice: ToolChoice.REQUIRED, rawText };
  return { toolChoice: ToolChoice.FUNCTION, toolFunction: writable("toolChoice", toolChoice), rawText };
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

function promptOf(options: PromptOptions): Prompt {
  const { prompt, messages, tokenIds, tools = [], protectedSpans = [] } = options;
  const { templateKwargs = {}, continueFinalMessage = false } = options;
  const hasVariables = Object.keys(templateKwargs).length > 0;
  if ([prompt, messages, tokenIds].filter((each) => each !== undefined).length !== 1) {
    throw new TypeError("give exactly one of prompt, messages and tokenIds");
  }
  if ((tools.length || hasVariables || continueFinalMessage) && messages === undefined) {
    throw new TypeError(
      "tools, templateKwargs and continueFinalMessage require messages: " +
        "prompt and tokenIds are not rendered with the chat template",
    );
  }
  const spans = protectedSpans.map(([start, end]) => ({ start, end }));
  if (tokenIds !== undefined) {
    return create(PromptSchema, { prompt: { case: "tokenIds", value: { ids: [...tokenIds] } }, protectedSpans: spans });
  }
  if (prompt !== undefined) {
    return create(PromptSchema, { prompt: { case: "text", value: writable("prompt", prompt) }, protectedSpans: spans });
  }
  const chat = chatOf(messages ?? [], tools);
  if (hasVariables) chat.templateKwargsJson = JSON.stringify(templateKwargs);
  chat.continueFinalMessage = continueFinalMessage;
  return create(PromptSchema, { prompt: { case: "chat", value: chat }, protectedSpans: spans });
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
  kvLookahead,
  renewEvery,
  renewWindow,
  firstFullTokens,
}: PromptOptions) {
  const selection = kvSelection === undefined ? undefined : enumValue("kvSelection", kvSelection, SELECTIONS);
  const lookahead = kvLookahead === undefined ? undefined : enumValue("kvLookahead", kvLookahead, LOOKAHEADS);
  const renewal = { lookahead, renewEvery, renewWindow, firstFullTokens };
  return { selection, keepFullPrefix, lookaheadTokens, continuePromptTokens, ...renewal };
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
