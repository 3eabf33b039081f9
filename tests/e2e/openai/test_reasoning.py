"""A reasoning model behind the three HTTP APIs: the same reasoning, text and calls, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .requests import CHAT, CLOCK, REQUESTS, WEATHER

pytestmark = [pytest.mark.models, pytest.mark.processes]

Body = dict[str, Any]
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HISTORY = REQUESTS["reasoning"][1]["messages"]
CHOICE = {"enum": ["yes", "no"]}
# What each API calls the same thing: it reasons; it need not; it answers in JSON; it has to call a tool.
REASONS: dict[str, Body] = {
    CHAT: {"messages": HISTORY, "reasoning_effort": "low", "max_tokens": 60},
    RESPONSES: {"input": HISTORY, "reasoning": {"effort": "low"}, "max_output_tokens": 60},
    MESSAGES: {"messages": HISTORY, "thinking": {"type": "adaptive"}, "max_tokens": 60},
}
FUNCTIONS = [tool["function"] for tool in (WEATHER, CLOCK)]
ASKED: dict[str, dict[str, Body]] = {
    "text": {CHAT: {}, RESPONSES: {}, MESSAGES: {}},
    "schema": {
        CHAT: {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": CHOICE}}},
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "answer", "schema": CHOICE}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": CHOICE}}},
    },
    "tool": {
        CHAT: {"tools": [WEATHER, CLOCK], "tool_choice": "required"},
        RESPONSES: {"tools": [{"type": "function", **each} for each in FUNCTIONS], "tool_choice": "required"},
        MESSAGES: {
            "tools": [
                {key: each[key] for key in ("name", "description", "strict")} | {"input_schema": each["parameters"]}
                for each in FUNCTIONS
            ],
            "tool_choice": {"type": "any"},
        },
    },
}


@pytest.mark.parametrize("asked", ASKED)
def test_every_api_has_the_same_parts(asked: str, presift: str, ask: Any) -> None:
    found = {}
    for path, more in ASKED[asked].items():
        body = REASONS[path] | more | {"temperature": 0}
        found[path] = parts_of(path, ask(presift, path, body))
        assert streamed_parts(path, ask(presift, path, body | {"stream": True})) == found[path]
    assert found[RESPONSES] == found[MESSAGES] == found[CHAT]
    reasoning, text, calls = found[CHAT]
    assert reasoning == "\nEasy.\n"
    if asked == "text":
        assert (text, calls) == ("\n\nYes.", [])
    elif asked == "schema":
        assert json.loads(text) in CHOICE["enum"]
    else:
        assert {name for name, _ in calls} == {"get_time"}


def parts_of(path: str, reply: httpx.Response) -> tuple[str, str, list[tuple[str, Any]]]:
    """Reasoning, text and calls of a whole answer."""
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    if path == CHAT:
        message = answer["choices"][0]["message"]
        calls = [each["function"] for each in message.get("tool_calls") or []]
        found = [(each["name"], json.loads(each["arguments"])) for each in calls]
        return message["reasoning_content"], message["content"] or "", found
    reasoning = text = ""
    found = []
    for item in answer["output" if path == RESPONSES else "content"]:
        kind = item["type"]
        if kind == "reasoning":
            reasoning += item["content"][0]["text"]
        elif kind == "thinking":
            reasoning += item["thinking"]
        elif kind == "message":
            text += item["content"][0]["text"]
        elif kind == "text":
            text += item["text"]
        else:
            found.append((item["name"], json.loads(item["arguments"]) if path == RESPONSES else item["input"]))
    return reasoning, text, found


def streamed_parts(path: str, reply: httpx.Response) -> tuple[str, str, list[tuple[str, Any]]]:
    """The same of a stream, from its deltas."""
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    reasoning = text = ""
    names: list[str] = []
    arguments: list[str] = []
    for kind, value in (each for event in events for each in _deltas(path, event)):
        if kind == "reasoning":
            assert not text and not names, "reasoning comes first"
            reasoning += value
        elif kind == "text":
            text += value
        elif kind == "name":
            names.append(value)
            arguments.append("")
        else:
            arguments[-1] += value
    return reasoning, text, [(name, json.loads(each)) for name, each in zip(names, arguments, strict=True)]


def _deltas(path: str, event: Body) -> list[tuple[str, str]]:
    if path == CHAT:
        deltas = [choice["delta"] for choice in event["choices"]]
        calls = [each["function"] for delta in deltas for each in delta.get("tool_calls") or []]
        found = [("reasoning", delta.get("reasoning_content")) for delta in deltas]
        found += [("text", delta.get("content")) for delta in deltas]
        for call in calls:
            found += [("name", call.get("name")), ("arguments", call.get("arguments"))]
        return [(kind, value) for kind, value in found if value]
    kind = event["type"]
    if path == RESPONSES:
        if kind == "response.output_item.added" and event["item"]["type"] == "function_call":
            return [("name", event["item"]["name"])]
        names = {
            "response.reasoning_text.delta": "reasoning",
            "response.output_text.delta": "text",
            "response.function_call_arguments.delta": "arguments",
        }
        return [(names[kind], event["delta"])] if kind in names else []
    if kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
        return [("name", event["content_block"]["name"])]
    fields = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}
    delta = event.get("delta", {})
    if kind != "content_block_delta" or delta["type"] not in fields:
        return []
    names = {"thinking_delta": "reasoning", "text_delta": "text", "input_json_delta": "arguments"}
    return [(names[delta["type"]], delta[fields[delta["type"]]])]
