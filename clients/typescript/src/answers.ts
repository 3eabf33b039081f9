/** The pieces of answers, as plain values. */
import type { TextDelta } from "./gen/presift/v1/orchestrator_pb.js";
import type * as wire from "./gen/presift/v1/target_pb.js";

/**
 * A call of a tool, number `index` of the answer. In a delta with an `id` or `name` a new call begins; in others,
 * `arguments` are the next piece. The arguments of a whole call are JSON.
 */
export interface ToolCall {
  readonly index: number;
  readonly id: string;
  readonly name: string;
  readonly arguments: string;
}

/**
 * A token and the natural logarithm of its probability, undefined for the first token of a prompt. `top`: the most
 * likely tokens at its place with their log probabilities, the most likely first.
 */
export interface TokenLogprob {
  readonly tokenId: number;
  readonly logprob: number | undefined;
  readonly top: readonly (readonly [number, number])[];
}

/**
 * The new part of answer number `choice`. `text` is empty while a character is incomplete; `reasoning` and `toolCalls`
 * are not part of it. `logprobs` has one item for each of `tokenIds`, if requested.
 */
export interface Delta {
  readonly kind: "delta";
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCall[];
  readonly logprobs: readonly TokenLogprob[];
  readonly choice: number;
}

export function deltaOf({ $typeName, $unknown, ...delta }: TextDelta): Delta {
  return {
    ...delta,
    kind: "delta",
    toolCalls: delta.toolCalls.map(({ $typeName, $unknown, ...call }) => call),
    logprobs: logprobsOf(delta.logprobs),
  };
}

export function logprobsOf(logprobs: readonly wire.TokenLogprob[]): TokenLogprob[] {
  return logprobs.map(({ tokenId, logprob, top }) => ({
    tokenId,
    logprob,
    top: top.map((other) => [other.tokenId, other.logprob] as const),
  }));
}

/** The calls of an answer, put together from the pieces of its deltas. */
export function wholeCalls(pieces: readonly ToolCall[]): ToolCall[] {
  const calls = new Map<number, ToolCall>();
  for (const { index, id, name, arguments: piece } of pieces) {
    const known = calls.get(index) ?? { index, id: "", name: "", arguments: "" };
    calls.set(index, { index, id: known.id || id, name: known.name || name, arguments: known.arguments + piece });
  }
  return [...calls.values()].sort((one, other) => one.index - other.index);
}
