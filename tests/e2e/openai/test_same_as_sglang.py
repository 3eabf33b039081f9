"""The same requests to SGLang's own server and to presift, on the same weights: the same answers.

Only the base URL differs. Greedy, so equal text, tool calls, finish reasons and token counts; log probabilities within
rounding. What SGLang's server refuses is not compared. Nothing else may run on either server: with penalties, SGLang's
answer depends on whether another prompt is read at the same time (ops/decisions/0026-answers.md).
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .requests import CHAT, REQUESTS

pytestmark = [pytest.mark.models, pytest.mark.processes]

Body = dict[str, Any]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_that_of_sglangs_own_server(name: str, sglang: str, presift: str, ask: Any) -> None:
    path, body = REQUESTS[name]
    expected = ask(sglang, path, body)
    assert expected.status_code == 200, expected.text
    found = ask(presift, path, body)
    assert found.status_code == 200, found.text

    read = _from_stream if body.get("stream") else _from_whole
    same, own = read(expected, path == CHAT), read(found, path == CHAT)
    assert own["logprobs"] == pytest.approx(same["logprobs"], abs=2e-3)
    del own["logprobs"], same["logprobs"]
    assert own == same


def _from_whole(reply: httpx.Response, is_chat: bool) -> Body:
    answer = reply.json()
    choices = {
        choice["index"]: _choice(choice, choice.get("message") or choice, is_chat) for choice in answer["choices"]
    }
    return _compared(choices, answer["usage"])


def _from_stream(reply: httpx.Response, is_chat: bool) -> Body:
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    choices: dict[int, Body] = {}
    usage: Body = {}
    for line in lines:
        chunk = json.loads(line)
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            new = _choice(choice, choice.get("delta") or choice, is_chat)
            old = choices.setdefault(
                choice["index"], {"text": "", "reasoning": "", "calls": [], "finish": None, "logprobs": []}
            )
            old["text"] += new["text"]
            old["reasoning"] += new["reasoning"]
            old["finish"] = new["finish"] or old["finish"]
            old["logprobs"] += new["logprobs"]
            for call in new["calls"]:
                if call["name"]:
                    old["calls"].append(call)
                else:
                    old["calls"][call["index"]]["arguments"] += call["arguments"]
    return _compared(choices, usage)


def _choice(choice: Body, content: Body, is_chat: bool) -> Body:
    calls = [
        {
            "index": call.get("index", number) or 0,
            "name": call["function"].get("name"),
            "arguments": call["function"].get("arguments") or "",
        }
        for number, call in enumerate(content.get("tool_calls") or [])
    ]
    text, reasoning = content.get("content" if is_chat else "text") or "", content.get("reasoning_content") or ""
    parts = {"text": text, "reasoning": reasoning, "calls": calls}
    return parts | {"finish": choice["finish_reason"], "logprobs": _logprobs(choice)}


def _logprobs(choice: Body) -> list[float]:
    given = choice.get("logprobs") or {}
    if "content" in given:
        found = [each["logprob"] for each in given["content"] or []]
        return found + [top["logprob"] for each in given["content"] or [] for top in each["top_logprobs"]]
    return [each for each in given.get("token_logprobs") or [] if each is not None]


def _compared(choices: dict[int, Body], usage: Body) -> Body:
    for choice in choices.values():
        choice["calls"] = [(call["name"], json.loads(call["arguments"])) for call in choice["calls"]]
    return {
        "choices": {index: {k: v for k, v in choice.items() if k != "logprobs"} for index, choice in choices.items()},
        "logprobs": [each for index in sorted(choices) for each in choices[index]["logprobs"]],
        "usage": {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "reasoning": _reasoning_tokens(usage),
    }


def _reasoning_tokens(usage: Body) -> int:
    """SGLang's server has its own place for them, beside OpenAI's."""
    return usage.get("reasoning_tokens") or (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0


def test_the_requests_have_all_shapes() -> None:
    assert len(REQUESTS) >= 60
