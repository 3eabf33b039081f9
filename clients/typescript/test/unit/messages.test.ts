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
  "an unknown key": [{ role: "user", content: "a", cached: true }, /messages\[0\]: a message has role.*; not cached/],
  "document on a message": [{ role: "user", content: "a", document: true }, /belongs on a part/],
  "no content": [{ role: "user" }, /messages\[0\] has no content/],
  "no role": [{ content: "a" }, /messages\[0\] has no role/],
  "an image": [{ role: "user", content: [{ type: "image_url", text: "" }] }, /content\[0\]: a part is text/],
  "an unknown key of a part": [{ role: "user", content: [{ text: "a", keep: true }] }, /not keep/],
  "both marks": [{ role: "user", content: [{ text: "a", document: true, protected: true }] }, /opposite things/],
  "a part without text": [{ role: "user", content: [{}] }, /content\[0\] has no text/],
};
for (const [what, [message, words]] of Object.entries(refused)) {
  test(`${what} is refused`, () => {
    assert.throws(() => chatOf([message as ChatMessage], []), words);
  });
}

test("half a surrogate pair is refused by its field", () => {
  assert.throws(
    () => chatOf([{ role: "user", content: [{ text: "fine 😀" }, { text: "\ud83d" }] }], []),
    (error) => error instanceof InvalidRequest && error.field === "messages[0].content[1].text",
  );
});
