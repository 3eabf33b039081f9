"""`suffix` of /v1/completions: the target fills in, if its tokenizer has the tokens for it."""

import pytest

from presift.core.plan import Route
from presift.orchestrator.pipeline.events import Delta

from ..fakes.scripted_pipeline import ScriptedDoor, decision, report

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
DEEPSEEK = ("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>")
ASK = {"prompt": "def f():", "suffix": "return x"}


def door_of(tokens):
    door = ScriptedDoor([decision(), Delta("x", (1,)), report()])
    door.pipeline.parts.tokenizer.backend.add_special_tokens(list(tokens))
    return door


async def post(door, body):
    return await door.http.post("/v1/completions", json=body)


@pytest.mark.parametrize("tokens", [QWEN, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), DEEPSEEK])
async def test_the_prompt_has_the_models_own_tokens(tokens):
    door = door_of(tokens)
    before, between, after = tokens
    assert (await post(door, ASK)).json()["choices"][0]["text"] == "x"
    assert door.request.prompt.text == f"{before}def f():{between}return x{after}"
    assert door.request.route is Route.FULL


async def test_several_prompts_and_an_empty_one():
    door = door_of(QWEN)
    assert (await post(door, ASK | {"prompt": ["a", ""], "presift": {"route": "full"}})).status_code == 200
    texts = {request.prompt.text for request in door.pipeline.requests}
    assert texts == {f"<|fim_prefix|>{text}<|fim_suffix|>return x<|fim_middle|>" for text in ("a", "")}


@pytest.mark.parametrize("suffix", ["", None])
async def test_an_empty_suffix_asks_for_nothing(suffix):
    door = door_of(())
    assert (await post(door, ASK | {"suffix": suffix, "echo": True})).status_code == 200
    assert door.request.prompt.text == "def f():" and door.request.route is None


REFUSED = {
    "without tokens": ((), {}, "suffix"),
    "with some of the tokens": (QWEN[:2], {}, "suffix"),
    "with echo": (QWEN, {"echo": True}, "suffix"),
    "token ids": (QWEN, {"prompt": [1, 2]}, "suffix"),
    "a suffix repeated in too many prompts": (QWEN, {"prompt": [""] * 2_000, "suffix": "x" * 5_000}, "suffix"),
    "no prompt": (QWEN, {"prompt": []}, "suffix"),
    "a route that drops tokens": (QWEN, {"presift": {"route": "spec_pc"}}, "presift.route"),
}


@pytest.mark.parametrize(("tokens", "change", "param"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_filled_in_is_refused(tokens, change, param):
    door = door_of(tokens)
    answer = await post(door, ASK | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert door.pipeline.requests == []
