"""The prompts of a load test: the mixed trace of `request_trace` as bodies of OpenAI's chat API, in a folder.

`requests.jsonl` has one body a line, as `bench_serving --dataset-name openai` reads it. Every key but `messages` and
`max_tokens` is sent as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from request_trace import Entry, trace

Body = dict[str, Any]
Count = Callable[[list[dict[str, str]]], int]


def bodies(count: int, seed: int, words: tuple[int, int], answer_tokens: int) -> list[Body]:
    """`count` requests, or one or two more or fewer, whose long documents have so many words. Greedy answers of exactly
    `answer_tokens` tokens; the server counts tokens in the last chunk of a stream."""
    return [
        {
            "messages": _messages(entry),
            "max_tokens": answer_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        for entry in trace(count, seed, words, [{}])
    ]


def _messages(entry: Entry) -> list[dict[str, str]]:
    """With texts instead of parts, between which SGLang writes a space and presift nothing."""
    return [{"role": each["role"], "content": _text(each["content"])} for each in entry.messages]


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def words_of(tokens: int, count: Count) -> int:
    """What to ask `bodies` for, so that a document has about `tokens` tokens."""
    words = 4000
    longest = max(count(body["messages"][:1]) for body in bodies(10, 0, (words, words), 1))
    return round(tokens * words / longest)


def write(folder: Path, requests: list[Body], count: Count) -> None:
    """Write the requests and, in `prompt_tokens.json`, the length of each prompt."""
    text = "".join(json.dumps(body) + "\n" for body in requests)
    (folder / "requests.jsonl").write_text(text)
    lengths = [count(body["messages"]) for body in requests]
    (folder / "prompt_tokens.json").write_text(json.dumps(lengths) + "\n")


def prompt_tokens(folder: Path) -> list[int]:
    """Of each request, with the chat template."""
    return json.loads((folder / "prompt_tokens.json").read_text())  # type: ignore[no-any-return]
