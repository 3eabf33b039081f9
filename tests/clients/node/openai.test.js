// OpenAI's own library for Node.
import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";

import { HELLO, MODEL, PERSON, Person, SUM_ANSWER, TOO_LONG, say, server } from "./shared.js";

const client = new OpenAI({ baseURL: `${server}/v1`, apiKey: "none", maxRetries: 0 });
const chat = { model: MODEL, messages: [{ role: "user", content: "Hi" }] };

test("chat", async () => {
  const answer = await client.chat.completions.create(chat);
  assert.equal(answer.choices[0].message.content, HELLO);
  assert.ok(answer.usage.completion_tokens > 0);
});

test("stream", async () => {
  const stream = await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, HELLO);
  assert.ok(usage.completion_tokens > 0);
});

test("parse a zod schema", async () => {
  const answer = await client.chat.completions.parse({ ...chat, response_format: zodResponseFormat(Person, "person") });
  assert.deepEqual(answer.choices[0].message.parsed, PERSON);
});

test("json_object", async () => {
  const messages = [{ role: "user", content: say('{"a": 1}') }];
  const answer = await client.chat.completions.create({ ...chat, messages, response_format: { type: "json_object" } });
  assert.deepEqual(JSON.parse(answer.choices[0].message.content), { a: 1 });
});

for (const stream of [false, true]) {
  test(`runTools, stream: ${stream}`, async () => {
    const calls = [];
    const add = ({ a, b }) => {
      calls.push([a, b]);
      return String(a + b);
    };
    const parameters = { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } } };
    const definition = { name: "add", description: "Add.", parameters, function: add, parse: JSON.parse };
    const runner = client.chat.completions.runTools({ ...chat, stream, tools: [{ type: "function", function: definition }] });
    assert.equal(await runner.finalContent(), SUM_ANSWER);
    assert.deepEqual(calls, [[2, 3]]);
  });
}

test("responses", async () => {
  const answer = await client.responses.create({ model: MODEL, input: "Hi" });
  assert.equal(answer.output_text, HELLO);
  let text = "";
  for await (const event of await client.responses.create({ model: MODEL, input: "Hi", stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, HELLO);
  const format = { format: zodTextFormat(Person, "person") };
  const parsed = await client.responses.parse({ model: MODEL, input: "Hi", text: format });
  assert.deepEqual(parsed.output_parsed, PERSON);
});

test("too long", async () => {
  const messages = [{ role: "user", content: TOO_LONG }];
  await assert.rejects(client.chat.completions.create({ ...chat, messages }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.code, "context_length_exceeded");
    return true;
  });
});
