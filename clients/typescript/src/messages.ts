/**
 * Builds a Chat from messages given as plain objects. Pure.
 *
 * A message is `{ role: "user", content: "..." }`, or `content: [{ text: "...", document: true }, { text: "..." }]`. If
 * any part is a document, only documents may be dropped; otherwise `protected` on a part or a message keeps it. Tool
 * calls have the form of other chat services: the assistant's message has `tool_calls` (its content may be null), and
 * each result is `{ role: "tool", tool_call_id, name, content }`.
 */
import { create } from "@bufbuild/protobuf";

import { invalidRequest } from "./errors.js";
import { type Chat, ChatSchema, type Message, MessageSchema } from "./gen/presift/v1/orchestrator_pb.js";

export interface TextPart {
  readonly type?: "text";
  readonly text: string;
  /** Never dropped. */
  readonly protected?: boolean;
  /** May be dropped; if any part is a document, nothing else of the chat may be. */
  readonly document?: boolean;
}

export interface ChatMessage {
  readonly role: "system" | "user" | "assistant" | "tool";
  readonly content?: string | readonly TextPart[] | null;
  readonly protected?: boolean;
  readonly tool_calls?: readonly object[] | null;
  readonly name?: string;
  readonly tool_call_id?: string;
  /** What a reasoning model wrote before its answer. */
  readonly reasoning?: string;
}

const MESSAGE_KEYS = ["role", "content", "protected", "tool_calls", "name", "tool_call_id", "reasoning"];
const PART_KEYS = ["type", "text", "protected", "document"];

/** Throws TypeError for a malformed message, InvalidRequest for text that is not valid Unicode. */
export function chatOf(messages: readonly ChatMessage[], tools: readonly object[]): Chat {
  return create(ChatSchema, {
    messages: messages.map((message, number) => messageOf(`messages[${number}]`, message)),
    toolsJson: tools.map((tool) => JSON.stringify(tool)),
  });
}

/** `text` unchanged. Throws InvalidRequest for an unpaired surrogate, which encoding would replace silently. */
export function writable(field: string, text: string): string {
  if (!text.isWellFormed()) throw invalidRequest(field, "text with an unpaired surrogate", "valid Unicode text");
  return text;
}

function messageOf(field: string, message: ChatMessage): Message {
  checkMessage(field, message);
  const { content, name, protected: kept = false, role, tool_call_id: callId, tool_calls: calls } = message;
  const parts = typeof content === "string" ? [{ text: content }] : (content ?? []);
  return create(MessageSchema, {
    role: writable(`${field}.role`, role),
    parts: parts.map((part, number) => partOf(`${field}.content[${number}]`, part)),
    protected: kept,
    toolCallsJson: (calls ?? []).map((call) => JSON.stringify(call)),
    name: writable(`${field}.name`, name ?? ""),
    toolCallId: writable(`${field}.tool_call_id`, callId ?? ""),
    reasoning: writable(`${field}.reasoning`, message.reasoning ?? ""),
  });
}

function checkMessage(field: string, message: ChatMessage): void {
  if ("document" in message) {
    throw new TypeError(
      `${field}: "document" marks a part, not a message: content: [{ text: ..., document: true }, ...]`,
    );
  }
  checkKeys(field, "a message", message, MESSAGE_KEYS);
  if (typeof message.role !== "string") throw new TypeError(`${field} has no role`);
  if ((message.content ?? null) === null && !message.tool_calls?.length) {
    throw new TypeError(`${field} has no content; only a message with tool_calls may omit it`);
  }
}

function partOf(field: string, part: TextPart) {
  if ((part.type ?? "text") !== "text")
    throw new TypeError(`${field}: type is ${JSON.stringify(part.type)}; it must be "text"`);
  checkKeys(field, "a part", part, PART_KEYS);
  const { text, protected: kept = false, document = false } = part;
  if (kept && document) {
    throw new TypeError(`${field}: document (may be dropped) and protected (may not) exclude each other`);
  }
  if (typeof text !== "string") throw new TypeError(`${field} has no text`);
  return { text: writable(`${field}.text`, text), protected: kept, document };
}

function checkKeys(field: string, what: string, value: object, known: readonly string[]): void {
  const unknown = Object.keys(value).filter((key) => !known.includes(key));
  if (unknown.length) {
    throw new TypeError(`${field}: unknown key ${unknown.join(", ")}; ${what} has ${known.join(", ")}`);
  }
}
