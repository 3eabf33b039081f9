"""What each route can do: the table of clients/README.md, which `test_features.py` holds to the running services."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
ROUTES = ("full", "spec_pc", "spec_kv", "spec_kv_pc")
# What is dropped of it does not matter here: every route must answer in the requested form.
DOCUMENT = "".join(
    f"Entry {number}: the lamp of the lighthouse was cleaned and the log closed. " for number in range(50)
)
# Enough for what must be kept (tools), less than half of the prompt.
BUDGETS: dict[str, Body] = {
    "full": {},
    "spec_pc": {"max_prompt_tokens": 300},
    "spec_kv": {"max_kv_tokens": 300},
    "spec_kv_pc": {"max_prompt_tokens": 400, "max_kv_tokens": 300},
}


@dataclass(frozen=True, slots=True)
class Feature:
    """A row of the table: the name of a request of `requests.py`, and what its answer must have.

    `refused`: the routes that refuse the request by name.
    """

    name: str
    request: str
    has: Callable[[Body], object]
    refused: tuple[str, ...] = ()


def _first(answer: Body) -> Body:
    choice: Body = answer["choices"][0]
    return choice


def _content(answer: Body) -> str:
    return str(_first(answer)["message"]["content"])


def _call(answer: Body) -> Body:
    call: Body = _first(answer)["message"]["tool_calls"][0]["function"]
    json.loads(call["arguments"])
    return call


FEATURES = (
    Feature("Chat", "chat", _content),
    Feature("Text completion", "text", lambda answer: _first(answer)["text"]),
    Feature("Lists of prompts", "text, two prompts", lambda answer: len(answer["choices"]) == 2),
    Feature("Several answers (`n`)", "chat, two choices", lambda answer: len(answer["choices"]) == 2),
    Feature("Stop strings and stop tokens", "chat, stop as a string", lambda answer: "." not in _content(answer)),
    Feature(
        "Penalties, `logit_bias`, `min_tokens`",
        "chat, at least",
        lambda answer: answer["usage"]["completion_tokens"] >= 20,
    ),
    Feature("`top_k`, `min_p`, `seed`", "chat, top_k 1", _content),
    Feature(
        "`logprobs`, `top_logprobs`",
        "chat, top log probabilities",
        lambda answer: _first(answer)["logprobs"]["content"],
    ),
    Feature(
        "`logprobs` of the prompt (`echo`)",
        "text, echo with log probabilities",
        lambda answer: len(_first(answer)["logprobs"]["tokens"]) > 100,
        ROUTES[1:],
    ),
    Feature(
        "JSON schema, JSON object", "chat, schema", lambda answer: set(json.loads(_content(answer))) == {"name", "age"}
    ),
    Feature("Regular expression, EBNF, choice", "chat, EBNF", lambda answer: re.fullmatch("yes|no", _content(answer))),
    Feature("Tools in the prompt, their results", "chat, tools left alone", _content),
    Feature("Forced tool calls", "chat, tool required", lambda answer: _call(answer)["name"]),
    Feature("A named tool", "chat, tool named", lambda answer: _call(answer)["name"] == "get_time"),
    Feature(
        "Reasoning apart from the answer",
        "reasoning",
        lambda answer: _first(answer)["message"]["reasoning_content"].strip() and "<" not in _content(answer),
    ),
    Feature("`continue_final_message`", "chat, continued", _content),
)


def with_document(body: Body) -> Body:
    """The request about a document of about 850 tokens."""
    if "messages" in body:
        first, *others = body["messages"]
        return body | {"messages": [first | {"content": [{"type": "text", "text": DOCUMENT}, *_parts(first)]}, *others]}
    prompt = body["prompt"]
    return body | {"prompt": [DOCUMENT + each for each in prompt] if isinstance(prompt, list) else DOCUMENT + prompt}


def _parts(message: Body) -> list[Body]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def table() -> str:
    """The table in Markdown."""
    head = ["feature", "SGLang's server", *(f"presift `{route}`" for route in ROUTES)]
    rows = [head, ["---"] * len(head)]
    for feature in FEATURES:
        marks = ["refused by name" if route in feature.refused else "yes" for route in ROUTES]
        rows.append([feature.name, "yes", *marks])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
