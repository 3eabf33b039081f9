"""Mutated requests over HTTP: an answer or an error in OpenAI's shape, and never an internal error."""

import copy
import json
import random

import pytest

from ..fakes.http_api import MODEL
from ..fakes.stack import ALL_ROUTES

PARTS = [{"type": "text", "text": "abc", "document": True}, {"type": "text", "text": "why?", "protected": False}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
PRESIFT = {
    "route": "spec_pc",
    "budget": {"max_prompt_tokens": 40, "strict": False, "auto_capacity": {"coverage": 0.5, "min_tokens": 2}},
    "kv": {"selection": "draft_mask", "lookahead_tokens": 3, "keep_full_prefix": True},
    "sampling": {"top_k": 3, "stop_token_ids": [1, 2], "ignore_eos": True},
    "protected": [{"message": 0, "part": 0}],
    "documents": [{"message": -1}],
    "explain": False,
    "token_ids": True,
    "timeout_s": 20,
}
ADDED = {
    "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "logit_bias": {"5": 2}, "n": 2,
    "stop_token_ids": [7], "seed": -1, "min_tokens": 1, "regex": "", "structured_outputs": {"json_object": False},
    "stream_options": {"include_usage": True}, "return_token_ids": True, "priority": 1,
    "response_format": {"type": "text"},
}  # fmt: skip
SAMPLED = {"max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "stream": False, "n": 1}
CHAT = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "tool_call_id": "1", "name": "add"},
        {"role": "user", "content": "?"},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    "presift": PRESIFT,
    **SAMPLED,
}
EXTENDED = ADDED | {
    "model": MODEL,
    "max_completion_tokens": 3,
    "messages": [
        {"role": "user", "content": ["a", PARTS[0]], "name": "me"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "b"}], "reasoning_content": "c"},
        {"role": "assistant", "content": None, "refusal": "no", "annotations": [{"a": 1}]},
        {"role": "user", "content": "?"},
    ],
    "logprobs": True,
    "top_logprobs": 2,
    "parallel_tool_calls": False,
    "tools": CHAT["tools"],
    "tool_choice": "auto",
    "reasoning": {"effort": "none"},
    "chat_template_kwargs": {},
    "separate_reasoning": True,
}
SEVERAL = ADDED | {"model": MODEL, "prompt": ["abc", [1, 2, 3]], "echo": True, "logprobs": 1, "max_tokens": 0}
PLAIN = CHAT | {"messages": [CHAT["messages"][0], CHAT["messages"][1]]}
TEXT = {
    "model": MODEL,
    "prompt": list(range(1, 60)),
    "presift": {"protected_spans": [{"start": 1, "end": 3}], "budget": {"max_kv_tokens": 30}},
    **SAMPLED,
}
ITEMS = {
    "model": MODEL,
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "abc", "document": True}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
        {"type": "message", "role": "assistant", "content": "Well.", "id": "msg_1", "status": "completed"},
        {"role": "user", "content": "?"},
    ],
    "text": {"format": {"type": "text"}},
    "reasoning": {"summary": "auto"},
    "max_output_tokens": 4,
    "metadata": {"a": "b"},
    "presift": PRESIFT | {"protected": [{"message": 3}], "documents": []},
}
BLOCKS = {
    "model": MODEL,
    "max_tokens": 4,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "abc", "document": True}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "1"}]},
    ],
    "tools": [{"name": "add", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto"},
    "stop_sequences": ["x"],
    "top_k": 3,
    "presift": PRESIFT | {"protected": [{"message": 0}], "documents": []},
}
TOKENS = {"model": MODEL, "prompt": ["abc"], "add_special_tokens": True, "return_token_strs": True}
IDS = {"model": MODEL, "tokens": [[1, 2], [3]], "skip_special_tokens": True}
OTHERS = {
    "responses": ITEMS,
    "messages": BLOCKS,
    "messages/count_tokens": BLOCKS,
    "tokenize": TOKENS,
    "detokenize": IDS,
}
JUNK = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        2**31,
        2**32,
        2**63,
        2**64,
        -(2**70),
        1e308,
        "",
        "a",
        "full",
        "\u0000",
        "\U0001f600",
    ),
    *([], [[]], [None], [1, "a"], {}, {"a": 1}, {"type": "text"}, "x" * 5000, [0] * 300, [[[[[[]]]]]]),
)


def mutated(body, dice):
    """A copy with one to three changes: a value replaced, removed, or a key added."""
    body = copy.deepcopy(body)
    for _ in range(dice.randint(1, 3)):
        holder, key = dice.choice(list(places(body)) or [(body, "model")])
        turn = dice.random()
        if turn < 0.7:
            holder[key] = copy.deepcopy(dice.choice(JUNK))
        elif turn < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[dice.choice(["colour", "document", "budget", "name", "protected", ""])] = dice.choice(JUNK)
    return body


def places(value):
    """(container, key) of every value in it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(pairs):
        yield value, key
        yield from places(each)


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_requests(open_stack, open_http_api, seed):
    api, dice = await open_http_api(await open_stack(routes=ALL_ROUTES)), random.Random(seed)
    statuses = set()
    for _ in range(150):
        path, base = dice.choice(
            [
                *(("chat/completions", each) for each in (CHAT, PLAIN, EXTENDED)),
                *(("completions", each) for each in (TEXT, SEVERAL)),
            ]
        )
        body = mutated(base, dice)
        given = sorted(ADDED.keys() & body.keys())
        for name in dice.sample(given, min(len(given), dice.choice([0, 0, 5, 12]))):
            del body[name]
        answer = await api.http.post(f"/v1/{path}", json=body)
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (json.dumps(body)[:2000], answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"] and error["type"] == "invalid_request_error" and len(answer.content) < 8192
    assert statuses >= {200, 400}
    await api.stack.settle(lambda: api.stack.server.calls.running == 0 and api.stack.admission.running == 0)


@pytest.mark.parametrize("path", OTHERS)
async def test_mutated_requests_of_other_apis(open_stack, open_http_api, path):
    api, dice = await open_http_api(await open_stack(routes=ALL_ROUTES)), random.Random(path)
    statuses = set()
    for _ in range(100):
        body = mutated(OTHERS[path], dice)
        answer = await api.http.post(f"/v1/{path}", json=body)
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (json.dumps(body)[:2000], answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"] and len(answer.content) < 8192
    assert statuses >= {200, 400}
    await api.stack.settle(lambda: api.stack.server.calls.running == 0 and api.stack.admission.running == 0)


async def test_mutated_bytes(open_stack, open_http_api):
    api, dice = await open_http_api(await open_stack(routes=ALL_ROUTES)), random.Random(5)
    raw = json.dumps(CHAT).encode()
    for _ in range(150):
        body = bytearray(raw)
        for _ in range(dice.randint(1, 6)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        body = body[: dice.choice([len(body), dice.randrange(len(body))])]
        answer = await api.http.post(
            "/v1/chat/completions", content=bytes(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 400, 404), (bytes(body), answer.text)
