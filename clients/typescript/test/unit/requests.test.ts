import assert from "node:assert/strict";
import { test } from "node:test";

import { type Chat, KvLookahead } from "../../src/gen/presift/v1/orchestrator_pb.js";
import { KvSelection, Route } from "../../src/gen/presift/v1/plan_pb.js";
import { ToolChoice } from "../../src/gen/presift/v1/target_pb.js";
import { InvalidRequest } from "../../src/index.js";
import { explainRequest, generateRequest, type Options } from "../../src/requests.js";

test("omitted options stay unset", () => {
  const { budget, kv, prompt, route, sampling } = generateRequest({ prompt: "hello" });
  assert.equal(route, Route.AUTO);
  assert.deepEqual(prompt?.prompt, { case: "text", value: "hello" });
  assert.equal(budget?.maxPromptTokens, undefined);
  assert.equal(budget?.autoCapacity, undefined);
  assert.equal(sampling?.maxNewTokens, undefined);
  assert.equal(sampling?.seed, undefined);
  assert.equal(kv?.selection, KvSelection.UNSPECIFIED);
  assert.equal(kv?.keepFullPrefix, undefined);
});

test("every option arrives", () => {
  const request = generateRequest({
    tokenIds: [1, 2, 3],
    protectedSpans: [[0, 2]],
    route: "spec_kv_pc",
    maxPromptTokens: 100,
    maxKvTokens: 50,
    strict: true,
    compressAboveTokens: 0,
    maxTtftMs: 900,
    minCoverage: 0.5,
    autoCoverage: 0.75,
    autoMinTokens: 16,
    autoMaxTokens: 64,
    kvSelection: "draft_mask",
    keepFullPrefix: false,
    kvLookaheadTokens: 0,
    continuePromptTokens: 7,
    kvLookahead: "auto",
    renewEvery: 12,
    renewWindow: 4,
    firstFullTokens: 5,
    maxNewTokens: 9,
    temperature: 0.5,
    topP: 0.25,
    topK: 4,
    seed: 2n ** 63n,
    stop: ["\n"],
    stopTokenIds: [2],
    ignoreEos: true,
    minP: 0.25,
    presencePenalty: 0.5,
    frequencyPenalty: -0.5,
    repetitionPenalty: 1.5,
    logitBias: { 7: -2 },
    minNewTokens: 3,
    regex: "a+",
    topLogprobs: 2,
    promptLogprobs: true,
    keepSpecialTokens: true,
    choices: 2,
    rawText: true,
    migrate: true,
  });
  assert.deepEqual(request.prompt?.prompt.value, { $typeName: "presift.v1.TokenIds", ids: [1, 2, 3] });
  assert.deepEqual(
    request.prompt?.protectedSpans.map(({ start, end }) => [start, end]),
    [[0, 2]],
  );
  assert.equal(request.route, Route.SPEC_KV_PC);
  const { $typeName: budgetType, autoCapacity, ...budget } = request.budget!;
  assert.deepEqual(budget, {
    maxPromptTokens: 100,
    maxKvTokens: 50,
    strict: true,
    compressAboveTokens: 0,
    maxTtftMs: 900,
    minCoverage: 0.5,
  });
  assert.deepEqual(
    [autoCapacity?.coverage, autoCapacity?.minTokens, autoCapacity?.maxTokens],
    [0.75, 16, 64],
    budgetType,
  );
  const { $typeName: kvType, ...kv } = request.kv!;
  const selection = KvSelection.DRAFT_MASK;
  const renewal = { lookahead: KvLookahead.AUTO, renewEvery: 12, renewWindow: 4, firstFullTokens: 5 };
  const selected = { selection, keepFullPrefix: false, lookaheadTokens: 0, continuePromptTokens: 7 };
  assert.deepEqual(kv, { ...selected, ...renewal }, kvType);
  const { $typeName: samplingType, ...sampling } = request.sampling!;
  const chosen = { maxNewTokens: 9, temperature: 0.5, topP: 0.25, topK: 4, seed: 2n ** 63n };
  const penalties = { presencePenalty: 0.5, frequencyPenalty: -0.5, repetitionPenalty: 1.5, logitBias: { 7: -2 } };
  const ends = { stop: ["\n"], stopTokenIds: [2], ignoreEos: true, minNewTokens: 3 };
  const form = {
    grammar: { case: "regex", value: "a+" },
    topLogprobs: 2,
    promptLogprobs: true,
    keepSpecialTokens: true,
  };
  assert.deepEqual(sampling, { ...chosen, minP: 0.25, ...penalties, ...ends, ...form }, samplingType);
  assert.deepEqual([request.choices, request.rawText, request.singleToolCall, request.migrate], [2, true, false, true]);
});

test("tools and variables of the template arrive", () => {
  const messages = [{ role: "user", content: "a" }] as const;
  const tools = [{ type: "function", function: { name: "f" } }];
  const chat = { messages, tools, templateKwargs: { thinking: false }, continueFinalMessage: true };
  const request = generateRequest({
    ...chat,
    toolChoice: "f",
    parallelToolCalls: false,
    jsonSchema: { type: "object" },
  });
  assert.deepEqual(
    [request.toolChoice, request.toolFunction, request.singleToolCall],
    [ToolChoice.FUNCTION, "f", true],
  );
  assert.deepEqual(request.sampling?.grammar, { case: "jsonSchema", value: '{"type":"object"}' });
  assert.equal(request.prompt?.prompt.case, "chat");
  const { templateKwargsJson, continueFinalMessage } = request.prompt.prompt.value as Chat;
  assert.deepEqual([templateKwargsJson, continueFinalMessage], ['{"thinking":false}', true]);
  assert.equal(generateRequest({ messages, tools, toolChoice: "required" }).toolChoice, ToolChoice.REQUIRED);
  assert.equal(generateRequest({ messages, tools, toolChoice: "none" }).rawText, true);
});

test("explain takes the same prompt and budget", () => {
  const request = explainRequest({ prompt: "hello", maxPromptTokens: 8, maxNewTokens: 3, spanPerToken: true });
  assert.deepEqual([request.budget?.maxPromptTokens, request.maxNewTokens, request.spanPerToken], [8, 3, true]);
});

const refused: Record<string, [object, RegExp]> = {
  "an unknown option": [{ prompt: "a", max_prompt_tokens: 5 }, /unknown option max_prompt_tokens/],
  "an inherited name": [{ prompt: "a", constructor: 5 }, /unknown option constructor/],
  "no prompt": [{}, /exactly one of prompt, messages and tokenIds/],
  "two prompts": [{ prompt: "a", tokenIds: [1] }, /exactly one/],
  "an unknown route": [{ prompt: "a", route: "spec" }, /route is "spec"; it must be one of auto, full/],
  "a route that every object has": [{ prompt: "a", route: "toString" }, /route is "toString"/],
  "an unknown selection": [{ prompt: "a", kvSelection: "both" }, /kvSelection is "both"/],
  "an unknown lookahead": [{ prompt: "a", kvLookahead: "both" }, /kvLookahead is "both"/],
  "bounds without coverage": [{ prompt: "a", autoMaxTokens: 5 }, /require autoCoverage/],
  "tools without messages": [
    { prompt: "a", tools: [{}] },
    /tools, templateKwargs and continueFinalMessage require messages/,
  ],
  "variables without messages": [{ prompt: "a", templateKwargs: { a: 1 } }, /require messages/],
  "two grammars": [{ prompt: "a", regex: "a", ebnf: "b" }, /give one of regex and ebnf/],
};
for (const [what, [options, match]] of Object.entries(refused)) {
  test(`${what} is refused`, () => {
    assert.throws(() => generateRequest(options as Options), match);
  });
}

test("an unpaired surrogate is refused before anything is sent", () => {
  for (const options of [{ prompt: "a\ud800" }, { prompt: "a", stop: ["\udc00"] }]) {
    assert.throws(() => generateRequest(options), InvalidRequest);
  }
});
