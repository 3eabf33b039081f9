/** The results of calls, as plain values: names instead of enum numbers, undefined for unset fields. */
import { timestampDate } from "@bufbuild/protobuf/wkt";

import * as wire from "./gen/presift/v1/orchestrator_pb.js";
import { KvSelection, type ModelInfo, type Policy, Route } from "./gen/presift/v1/plan_pb.js";
import { FinishReason } from "./gen/presift/v1/target_pb.js";

/** A model that the orchestrator uses. Models with the same `tokenizerFingerprint` use the same token ids. */
export interface Model {
  readonly id: string;
  readonly revision: string;
  readonly contextTokens: number;
  readonly tokenizerFingerprint: string;
}

/**
 * What was applied and why. Counts in tokens, times in milliseconds.
 *
 * `keptTokens` is what the target reads, `kvTokens` what it will hold. `coverage` is 0..1, undefined if the draft
 * dropped nothing. `kvSelection` and `keepFullPrefix` are undefined unless KV is dropped. `continued`: the selection of
 * an earlier turn was used. `predictedTtftMs` counts from arrival at the orchestrator. `crossVocabulary`: draft and
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
}

/** The new part of the answer. `text` is empty while a character is incomplete. */
export interface Delta {
  readonly kind: "delta";
  readonly text: string;
  readonly tokenIds: readonly number[];
}

/**
 * The end of an answer. Counts in tokens, times in milliseconds; `ttftMs` starts at arrival at the orchestrator.
 * `kvTokens` is what the prompt actually held. If KV was dropped: `reusedEntry` says whether the target had the
 * compressed entry, `scoreMs` and `publishMs` are the times to select and to copy the KV, and `coverage` is the share
 * of the scoring queries' attention on kept KV.
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
}

/** One event of a stream: first a decision, then deltas, then a usage. */
export type Event = Decision | Delta | Usage;

/** A whole answer with its decision and usage. */
export interface Generation {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly decision: Decision;
  readonly usage: Usage;
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

/** How well a route's answers agree with those of `full`, for prompts of `minTokens` to `maxTokens`. */
export interface RouteQuality {
  readonly route: string;
  readonly minTokens: number;
  readonly maxTokens: number;
  readonly samples: number;
  readonly meanOverlap: number | undefined;
  readonly exactShare: number | undefined;
  readonly meanFirstDivergence: number | undefined;
  readonly switchedOff: boolean;
  readonly since: Date | undefined;
}

/** The models and routes of an orchestrator. `draft` is undefined while no draft is known. */
export interface Info {
  readonly draft: Model | undefined;
  readonly target: Model | undefined;
  readonly supportedRoutes: readonly string[];
  readonly compressAboveTokens: number;
  readonly routeQuality: readonly RouteQuality[];
  readonly replicas: readonly Replica[];
}

/** One event of the stream; undefined if a newer service sends one that this client does not know. */
export function eventOf({ event }: wire.GenerateResponse): Event | undefined {
  switch (event.case) {
    case "decision":
      return decisionOf(event.value);
    case "delta":
      return { kind: "delta", text: event.value.text, tokenIds: event.value.tokenIds };
    case "usage":
      return usageOf(event.value);
    default:
      return undefined;
  }
}

/** The whole answer from its events. Throws Error without a decision or a usage. */
export async function gather(events: AsyncIterable<Event>): Promise<Generation> {
  const [texts, tokenIds]: [string[], number[]] = [[], []];
  let [decision, usage]: [Decision | undefined, Usage | undefined] = [undefined, undefined];
  for await (const event of events) {
    if (event.kind === "decision") decision = event;
    else if (event.kind === "usage") usage = event;
    else {
      texts.push(event.text);
      tokenIds.push(...event.tokenIds);
    }
  }
  if (decision === undefined || usage === undefined) throw new Error("the stream ended without a decision or a usage");
  return { text: texts.join(""), tokenIds, decision, usage };
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
  };
}

function decisionOf(decision: wire.Decision): Decision {
  const { $typeName, $unknown, policy, draft, target, ...rest } = decision;
  const selection = selectionOf(policy);
  return {
    ...rest,
    kind: "decision",
    route: nameOf(Route, decision.route),
    reason: nameOf(wire.DecisionReason, decision.reason),
    cache: nameOf(wire.CacheOutcome, decision.cache),
    draft: modelOf(draft),
    target: modelOf(target),
    coverage: decision.coverage,
    kvSelection: selection === undefined ? undefined : nameOf(KvSelection, selection),
    keepFullPrefix: decision.keepFullPrefix,
    predictedTtftMs: decision.predictedTtftMs,
  };
}

function usageOf({ $typeName, $unknown, ...usage }: wire.Usage): Usage {
  return {
    ...usage,
    kind: "usage",
    finishReason: nameOf(FinishReason, usage.finishReason),
    coverage: usage.coverage,
  };
}

function selectionOf(policy: Policy | undefined): KvSelection | undefined {
  if (policy?.policy.case === "specKvPc") return policy.policy.value.kv?.selection;
  return policy?.policy.case === "specKv" ? policy.policy.value.selection : undefined;
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
  const { meanOverlap, exactShare, meanFirstDivergence } = quality;
  const route = nameOf(Route, quality.route);
  const when = since === undefined ? undefined : timestampDate(since);
  return { ...quality, route, meanOverlap, exactShare, meanFirstDivergence, since: when };
}

function modelOf(model: ModelInfo | undefined): Model | undefined {
  if (model === undefined) return undefined;
  const { id, revision, contextTokens, tokenizerFingerprint } = model;
  return { id, revision, contextTokens, tokenizerFingerprint };
}

// "spec_pc" for Route.SPEC_PC; the number as text if a newer service sends a value that this client lacks.
function nameOf(names: Readonly<Record<number, string>>, number: number): string {
  return names[number]?.toLowerCase() ?? String(number);
}
