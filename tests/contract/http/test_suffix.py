"""`suffix` of /v1/completions: the target fills in, if its tokenizer has the tokens for it."""

import pytest

from presift.core.plan import Route
from presift.orchestrator.pipeline.events import Delta

from ..fakes.scripted_pipeline import ScriptedHttpApi, decision, report

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
DEEPSEEK = ("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>")
ASK = {"prompt": "def f():", "suffix": "return x"}


def api_of(tokens):
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    api.pipeline.parts.tokenizer.backend.add_special_tokens(list(tokens))
    return api


async def post(api, body):
    return await api.http.post("/v1/completions", json=body)


@pytest.mark.parametrize("tokens", [QWEN, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), DEEPSEEK])
async def test_the_prompt_has_the_models_own_tokens(tokens):
    api = api_of(tokens)
    before, between, after = tokens
    assert (await post(api, ASK)).json()["choices"][0]["text"] == "x"
    assert api.request.prompt.text == f"{before}def f():{between}return x{after}"
    assert api.request.route is Route.FULL


async def test_several_prompts_and_an_empty_one():
    api = api_of(QWEN)
    assert (await post(api, ASK | {"prompt": ["a", ""], "presift": {"route": "full"}})).status_code == 200
    texts = {request.prompt.text for request in api.pipeline.requests}
    assert texts == {f"<|fim_prefix|>{text}<|fim_suffix|>return x<|fim_middle|>" for text in ("a", "")}


@pytest.mark.parametrize("suffix", ["", None])
async def test_an_empty_suffix_asks_for_nothing(suffix):
    api = api_of(())
    assert (await post(api, ASK | {"suffix": suffix, "echo": True})).status_code == 200
    assert api.request.prompt.text == "def f():" and api.request.route is None


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
    api = api_of(tokens)
    answer = await post(api, ASK | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert api.pipeline.requests == []
