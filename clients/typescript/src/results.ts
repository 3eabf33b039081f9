/** The results of calls, as plain values: names instead of enum numbers, undefined for unset fields. */
import { timestampDate } from "@bufbuild/protobuf/wkt";

import { type Delta, type TokenLogprob, type ToolCall, deltaOf, logprobsOf, wholeCalls } from "./answers.js";
import * as wire from "./gen/presift/v1/orchestrator_pb.js";
import { KvSelection, type ModelInfo, type Policy, Route, type SpecKv } from "./gen/presift/v1/plan_pb.js";
import { FinishReason } from "./gen/presift/v1/target_pb.js";

/**
 * A model that the orchestrator uses. Models with the same `tokenizerFingerprint` use the same token ids. `headProfile`
 * is the digest of a draft's head profile, empty without one.
 */
export interface Model {
  readonly id: string;
  readonly revision: string;
  readonly contextTokens: number;
  readonly tokenizerFingerprint: string;
  readonly headProfile: string;
}

/**
 * What was applied and why. Counts in tokens, times in milliseconds.
 *
 * `keptTokens` is what the target reads, `kvTokens` what it will hold. `coverage` is 0..1, undefined if the draft
 * dropped nothing. `kvSelection`, `keepFullPrefix`, `renewEvery`, `renewWindow` and `firstFullTokens` are undefined unless
 * KV is dropped. `kvLookahead` is who made the lookahead, "draft" or "target"; undefined without one. `continued`: the
 * selection of an earlier turn was used. `predictedTtftMs` counts from arrival at the orchestrator. `crossVocabulary`: draft and
 * target use different token ids.
 */
export interface Decision {
  readonly kind: "decision";
  readonly route: string;
  readonly reason: string;
  readonly detail: string;
  readonly promptTokens: number;
  readonly keptTokens: number;
  readonly kvTokens: number;
  readonly protectedTokens: number;
  readonly coverage: number | undefined;
  readonly cache: string;
  readonly draft: Model | undefined;
  readonly target: Model | undefined;
  readonly tokenizeMs: number;
  readonly cacheMs: number;
  readonly draftMs: number;
  readonly prefillMs: number;
  readonly kvSelection: string | undefined;
  readonly keepFullPrefix: boolean | undefined;
  readonly continued: boolean;
  readonly predictedTtftMs: number | undefined;
  readonly crossVocabulary: boolean;
  /** Prompt tokens that the draft had kept of an earlier prompt. */
  readonly draftCachedTokens: number;
  readonly kvLookahead: string | undefined;
  readonly renewEvery: number | undefined;
  readonly renewWindow: number | undefined;
  readonly firstFullTokens: number | undefined;
}

/**
 * The end of answer number `choice`. Counts in tokens, times in milliseconds; `ttftMs` starts at arrival at the
 * orchestrator. `warnings` say in words what may be unexpected, e.g. an answer that stopped at the default length.
 *
 * `kvTokens` is what the prompt actually held. If KV was dropped: `reusedEntry` says whether the target had the
 * compressed entry, `scoreMs` and `publishMs` are the times to select and to copy the KV, and `coverage` is the share
 * of the scoring queries' attention on kept KV. `renewals` counts how often KV was selected anew while the answer was
 * generated, and `renewalsSkipped` how often that was due and not done; `coverage` is then the last one and
 * `coverageMin` the lowest. `acceptedTokens` began the answer without being decoded: the target confirmed the draft's
 * lookahead. `kvTokensPeak` and `kvTokensMean` count prompt and answer over the decode steps; 0 unless KV was dropped.
 * `migrated` says whether a second target continued the answer, because the first one was lost (option `migrate`).
 */
export interface Usage {
  readonly kind: "usage";
  readonly promptTokens: number;
  readonly keptTokens: number;
  readonly kvTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
  readonly finishReason: string;
  readonly targetTtftMs: number;
  readonly ttftMs: number;
  readonly totalMs: number;
  readonly reusedEntry: boolean;
  readonly scoreMs: number;
  readonly publishMs: number;
  readonly coverage: number | undefined;
  readonly choice: number;
  readonly reasoningTokens: number;
  readonly promptLogprobs: readonly TokenLogprob[];
  readonly warnings: readonly string[];
  readonly renewals: number;
  readonly renewalsSkipped: number;
  readonly acceptedTokens: number;
  readonly kvTokensPeak: number;
  readonly kvTokensMean: number;
  readonly coverageMin: number | undefined;
  readonly migrated: boolean;
}

/** One event of a stream: first a decision, then deltas, then a usage for each answer. */
export type Event = Decision | Delta | Usage;

/** One of several answers, with its usage. */
export interface Choice {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly usage: Usage;
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCall[];
  readonly logprobs: readonly TokenLogprob[];
}

/** A whole answer with its decision and usage. `choices` are all answers: this one is the first of them. */
export interface Generation extends Choice {
  readonly decision: Decision;
  readonly choices: readonly Choice[];
}

/**
 * The prompt tokens [start, end), kept, dropped and protected alike. `characters` is their range in the rendered text,
 * in Unicode code points.
 */
export interface ExplainedSpan {
  readonly start: number;
  readonly end: number;
  readonly characters: readonly [number, number] | undefined;
  readonly kept: boolean;
  readonly protected: boolean;
  readonly importance: number;
}

/** What would be kept and why. `text` is the rendered prompt; empty for prompts of token ids. */
export interface Explanation {
  readonly decision: Decision;
  readonly spans: readonly ExplainedSpan[];
  readonly text: string;
}

/** One draft or target process (`role`). `unused` says why a healthy replica gets no calls; empty if it is used. */
export interface Replica {
  readonly address: string;
  readonly role: string;
  readonly healthy: boolean;
  readonly breaker: string;
  readonly inFlight: number;
  readonly unused: string;
  readonly name: string;
}

/**
 * How well a route's answers agree with those of `full`, for prompts of `minTokens` to `maxTokens`.
 *
 * `meanAgreement`, 0..1, decides whether the route is switched off. Its parts are `meanOverlap`, the share of tokens
 * that both answers have in the same order, and `meanFactShare`, the share of the facts (numbers, identifiers, names,
 * quoted strings) of full's answer that the route's answer has too; undefined if no answer had facts.
 */
export interface RouteQuality {
  readonly route: string;
  readonly minTokens: number;
  readonly maxTokens: number;
  readonly samples: number;
  readonly meanAgreement: number | undefined;
  readonly meanOverlap: number | undefined;
  readonly meanFactShare: number | undefined;
  readonly exactShare: number | undefined;
  readonly meanFirstDivergence: number | undefined;
  readonly switchedOff: boolean;
  readonly since: Date | undefined;
}

/**
 * The models and routes of an orchestrator. `draft` is undefined while no draft is known. The parsers separate tool
 * calls and reasoning from answers, empty if there is none; `grammars`: whether answers can be restricted.
 */
export interface Info {
  readonly draft: Model | undefined;
  readonly target: Model | undefined;
  readonly supportedRoutes: readonly string[];
  readonly compressAboveTokens: number;
  readonly routeQuality: readonly RouteQuality[];
  readonly replicas: readonly Replica[];
  readonly toolCallParser: string;
  readonly reasoningParser: string;
  readonly grammars: boolean;
  /** The cache of compressed prompts did not answer the last time. */
  readonly cacheUnavailable: boolean;
  /** The key or token is no administrator's: routeQuality and replicas are empty. */
  readonly restricted: boolean;
  /** The target's engine with its version, and "(untested)" if presift was not tested with it. */
  readonly engine: string;
}

/** One event of the stream; undefined if a newer service sends one that this client does not know. */
export function eventOf({ event }: wire.GenerateResponse): Event | undefined {
  switch (event.case) {
    case "decision":
      return decisionOf(event.value);
    case "delta":
      return deltaOf(event.value);
    case "usage":
      return usageOf(event.value);
    default:
      return undefined;
  }
}

/** The whole answers from their events. Throws Error without a decision, or without a usage of each answer. */
export async function gather(events: AsyncIterable<Event>): Promise<Generation> {
  const deltas: Delta[] = [];
  const usages = new Map<number, Usage>();
  let decision: Decision | undefined;
  for await (const event of events) {
    if (event.kind === "decision") decision = event;
    else if (event.kind === "usage") usages.set(event.choice, event);
    else deltas.push(event);
  }
  const inOrder = [...usages.values()].sort((one, other) => one.choice - other.choice);
  const choices = inOrder.map((usage) => choiceOf(deltas, usage));
  const first = choices[0];
  if (decision === undefined || first === undefined || !deltas.every(({ choice }) => usages.has(choice))) {
    throw new Error("the stream ended without a decision or the usage of every answer");
  }
  return { ...first, decision, choices };
}

function choiceOf(deltas: readonly Delta[], usage: Usage): Choice {
  const own = deltas.filter(({ choice }) => choice === usage.choice);
  return {
    text: own.map(({ text }) => text).join(""),
    tokenIds: own.flatMap(({ tokenIds }) => tokenIds),
    usage,
    reasoning: own.map(({ reasoning }) => reasoning).join(""),
    toolCalls: wholeCalls(own.flatMap(({ toolCalls }) => toolCalls)),
    logprobs: own.flatMap(({ logprobs }) => logprobs),
  };
}

/** The response of Explain. */
export function explanationOf(answer: wire.ExplainResponse): Explanation {
  if (answer.decision === undefined) throw new Error("the explanation has no decision");
  return { decision: decisionOf(answer.decision), spans: answer.spans.map(spanOf), text: answer.text };
}

/** The response of GetInfo. */
export function infoOf(info: wire.GetInfoResponse): Info {
  return {
    draft: modelOf(info.draft),
    target: modelOf(info.target),
    supportedRoutes: info.supportedRoutes.map((route) => nameOf(Route, route)),
    compressAboveTokens: info.compressAboveTokens,
    routeQuality: info.routeQuality.map(qualityOf),
    replicas: info.replicas.map(({ $typeName, $unknown, ...replica }) => replica),
    toolCallParser: info.toolCallParser,
    reasoningParser: info.reasoningParser,
    grammars: info.grammars,
    cacheUnavailable: info.cacheUnavailable,
    restricted: info.restricted,
    engine: info.engine,
  };
}

function decisionOf(decision: wire.Decision): Decision {
  const { $typeName, $unknown, policy, draft, target, lookahead, ...rest } = decision;
  const kv = specKvOf(policy);
  return {
    ...rest,
    kind: "decision",
    route: nameOf(Route, decision.route),
    reason: nameOf(wire.DecisionReason, decision.reason),
    cache: nameOf(wire.CacheOutcome, decision.cache),
    draft: modelOf(draft),
    target: modelOf(target),
    coverage: decision.coverage,
    kvSelection: kv === undefined ? undefined : nameOf(KvSelection, kv.selection),
    keepFullPrefix: decision.keepFullPrefix,
    predictedTtftMs: decision.predictedTtftMs,
    kvLookahead: lookahead === undefined ? undefined : nameOf(wire.KvLookahead, lookahead),
    renewEvery: kv?.renewEvery,
    renewWindow: kv?.renewWindow,
    firstFullTokens: kv?.firstFullTokens,
  };
}

function usageOf({ $typeName, $unknown, ...usage }: wire.Usage): Usage {
  return {
    ...usage,
    kind: "usage",
    finishReason: nameOf(FinishReason, usage.finishReason),
    coverage: usage.coverage,
    coverageMin: usage.coverageMin,
    migrated: usage.migrated,
    promptLogprobs: logprobsOf(usage.promptLogprobs),
  };
}

function specKvOf(policy: Policy | undefined): SpecKv | undefined {
  if (policy?.policy.case === "specKvPc") return policy.policy.value.kv;
  return policy?.policy.case === "specKv" ? policy.policy.value : undefined;
}

function spanOf(span: wire.ExplainedSpan): ExplainedSpan {
  const { tokens, characters, kept, importance } = span;
  return {
    start: tokens?.start ?? 0,
    end: tokens?.end ?? 0,
    characters: characters === undefined ? undefined : [characters.start, characters.end],
    kept,
    protected: span.protected,
    importance,
  };
}

function qualityOf({ $typeName, $unknown, since, ...quality }: wire.RouteQuality): RouteQuality {
  const { meanAgreement, meanOverlap, meanFactShare, exactShare, meanFirstDivergence } = quality;
  const route = nameOf(Route, quality.route);
  const when = since === undefined ? undefined : timestampDate(since);
  const means = { meanAgreement, meanOverlap, meanFactShare, exactShare, meanFirstDivergence };
  return { ...quality, route, ...means, since: when };
}

function modelOf(model: ModelInfo | undefined): Model | undefined {
  if (model === undefined) return undefined;
  const { id, revision, contextTokens, tokenizerFingerprint, headProfile } = model;
  return { id, revision, contextTokens, tokenizerFingerprint, headProfile };
}

// "spec_pc" for Route.SPEC_PC; the number as text if a newer service sends a value that this client lacks.
function nameOf(names: Readonly<Record<number, string>>, number: number): string {
  return names[number]?.toLowerCase() ?? String(number);
}
