// The AI SDK: its provider for compatible servers, and OpenAI's own, which speaks chat completions and responses.
import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

import { HELLO, MODEL, PERSON, Person, SUM_ANSWER, TOO_LONG, say, server } from "./shared.js";

const options = { baseURL: `${server}/v1`, apiKey: "none" };
const openai = createOpenAI(options);
const MODELS = {
  compatible: createOpenAICompatible({ ...options, name: "presift", includeUsage: true, supportsStructuredOutputs: true })(MODEL),
  "compatible without schemas": createOpenAICompatible({ ...options, name: "presift", includeUsage: true })(MODEL),
  chat: openai.chat(MODEL),
  responses: openai.responses(MODEL),
};

function adder() {
  const calls = [];
  const add = tool({
    description: "Add two integers.",
    inputSchema: z.object({ a: z.number().int(), b: z.number().int() }),
    execute: ({ a, b }) => {
      calls.push([a, b]);
      return a + b;
    },
  });
  return { calls, tools: { add } };
}

for (const [name, model] of Object.entries(MODELS)) {
  const asked = { model, maxRetries: 0, prompt: "Hi" };
  // Without schemas the format is json_object: the schema is only in the prompt.
  const prompt = name === "compatible without schemas" ? say(JSON.stringify(PERSON)) : "Who is Ada?";

  test(`${name}: generateText`, async () => {
    const answer = await generateText({ ...asked, temperature: 0.3, maxOutputTokens: 50, seed: 1 });
    assert.equal(answer.text, HELLO);
    assert.ok(answer.usage.outputTokens > 0);
  });

  test(`${name}: streamText`, async () => {
    const answer = streamText({ ...asked, onError: ({ error }) => assert.fail(error) });
    let text = "";
    for await (const piece of answer.textStream) text += piece;
    assert.equal(text, HELLO);
    assert.ok((await answer.usage).outputTokens > 0);
  });

  test(`${name}: generateObject`, async () => {
    const answer = await generateObject({ ...asked, prompt, schema: Person });
    assert.deepEqual(answer.object, PERSON);
  });

  test(`${name}: streamObject`, async () => {
    let last;
    const answer = streamObject({ ...asked, prompt, schema: Person, onError: ({ error }) => assert.fail(error) });
    for await (const partial of answer.partialObjectStream) last = partial;
    assert.deepEqual(last, PERSON);
    assert.deepEqual(await answer.object, PERSON);
  });

  test(`${name}: Output.object`, async () => {
    const answer = await generateText({ ...asked, prompt, output: Output.object({ schema: Person }) });
    assert.deepEqual(answer.output, PERSON);
  });

  test(`${name}: a tool loop`, async () => {
    const { calls, tools } = adder();
    const answer = await generateText({ ...asked, prompt: "What is 2 + 3?", tools, stopWhen: stepCountIs(3) });
    assert.equal(answer.text, SUM_ANSWER);
    assert.deepEqual(calls, [[2, 3]]);
  });

  test(`${name}: a tool loop, streamed`, async () => {
    const { calls, tools } = adder();
    const answer = streamText({ ...asked, prompt: "What is 2 + 3?", tools, stopWhen: stepCountIs(3) });
    await answer.consumeStream();
    assert.equal(await answer.text, SUM_ANSWER);
    assert.deepEqual(calls, [[2, 3]]);
  });

  for (const toolChoice of ["required", { type: "tool", toolName: "add" }]) {
    test(`${name}: a forced call, ${JSON.stringify(toolChoice)}`, async () => {
      const answer = await generateText({ ...asked, tools: adder().tools, toolChoice });
      assert.deepEqual(answer.toolCalls[0].input, { a: 2, b: 3 });
    });
  }

  test(`${name}: too long`, async () => {
    await assert.rejects(generateText({ ...asked, prompt: TOO_LONG }), (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      return true;
    });
  });
}

test("reasoning is separate", async () => {
  const answer = await generateText({ model: MODELS.compatible, maxRetries: 0, prompt: "THINK" });
  assert.equal(answer.text.trim(), HELLO);
  assert.equal(answer.reasoningText.trim(), "It is simple.");
});
