import assert from "node:assert/strict";
import { test } from "node:test";

import { InvalidRequest } from "../../src/index.js";
import { type ChatMessage, chatOf } from "../../src/messages.js";

test("content is a string, parts or, with calls, nothing", () => {
  const call = { id: "c1", type: "function", function: { name: "look", arguments: "{}" } };
  const { messages, toolsJson } = chatOf(
    [
      { role: "system", content: "brief" },
      {
        role: "user",
        content: [
          { text: "long", document: true },
          { type: "text", text: "why?" },
        ],
      },
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", tool_call_id: "c1", name: "look", content: "seen", protected: true },
    ],
    [{ type: "function", function: { name: "look" } }],
  );
  assert.deepEqual(
    messages.map(({ role, parts }) => [role, parts.map(({ text }) => text)]),
    [
      ["system", ["brief"]],
      ["user", ["long", "why?"]],
      ["assistant", []],
      ["tool", ["seen"]],
    ],
  );
  assert.deepEqual(
    messages[1]?.parts.map((part) => [part.document, part.protected]),
    [
      [true, false],
      [false, false],
    ],
  );
  assert.deepEqual(JSON.parse(messages[2]?.toolCallsJson[0] ?? ""), call);
  assert.deepEqual([messages[3]?.name, messages[3]?.toolCallId, messages[3]?.protected], ["look", "c1", true]);
  assert.deepEqual(toolsJson, ['{"type":"function","function":{"name":"look"}}']);
});

const refused: Record<string, [object, RegExp]> = {
  "an unknown key": [
    { role: "user", content: "a", cached: true },
    /messages\[0\]: unknown key cached; a message has role/,
  ],
  "document on a message": [{ role: "user", content: "a", document: true }, /marks a part, not a message/],
  "no content": [{ role: "user" }, /messages\[0\] has no content/],
  "no role": [{ content: "a" }, /messages\[0\] has no role/],
  "an image": [
    { role: "user", content: [{ type: "image_url", text: "" }] },
    /content\[0\]: type is "image_url"; it must be "text"/,
  ],
  "an unknown key of a part": [{ role: "user", content: [{ text: "a", keep: true }] }, /unknown key keep; a part has/],
  "both marks": [{ role: "user", content: [{ text: "a", document: true, protected: true }] }, /exclude each other/],
  "a part without text": [{ role: "user", content: [{}] }, /content\[0\] has no text/],
};
for (const [what, [message, match]] of Object.entries(refused)) {
  test(`${what} is refused`, () => {
    assert.throws(() => chatOf([message as ChatMessage], []), match);
  });
}

test("an unpaired surrogate is refused by field", () => {
  assert.throws(
    () => chatOf([{ role: "user", content: [{ text: "fine 😀" }, { text: "\ud83d" }] }], []),
    (error) => error instanceof InvalidRequest && error.field === "messages[0].content[1].text",
  );
});
