"""Families that differ from the reference's models outside attention: KV is dropped as in those.

The other tests here run on a Qwen2 and a Llama, with feed-forward layers. Experts see a token's row alone, so that what
is dropped must not matter to them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from presift.core.plan import Route
from presift.models.torchvision_ops import declare_missing

pytestmark = pytest.mark.asyncio(loop_scope="session")

# name: its `model_type`
MODELS = {"tinym": "qwen3_moe"}
CAPACITY = 64


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_both_routes_are_served(start: Any, tiny_model: Callable[[str], Path], model: str) -> None:
    info = (await start(model)).engine.info
    assert {Route.SPEC_KV, Route.SPEC_KV_PC} <= set(info.routes)
    assert info.unsupported == {}
    assert json.loads((tiny_model(model) / "config.json").read_text())["model_type"] == MODELS[model]


async def test_full_answers_as_transformers_does(
    start: Any, tiny_model: Callable[[str], Path], prompt: Any, model: str
) -> None:
    """Otherwise SGLang may not have read all weights, and nothing here would mean anything."""
    ids = prompt(9, 200)
    tokens, _ = await (await start(model)).answer(ids, max_new_tokens=8)
    assert tokens == greedy(tiny_model(model), ids, 8)


def greedy(folder: Path, ids: list[int], tokens: int) -> list[int]:
    """The most likely next tokens, one after the other."""
    declare_missing()
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = list(ids)
    with torch.no_grad():
        for _ in range(tokens):
            found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


async def test_with_all_kv_kept_the_answer_is_that_of_full(start: Any, plan: Any, prompt: Any, model: str) -> None:
    """Of several chunks, alone and beside one that drops KV."""
    driver, prompts = await start(model), [prompt(seed, 60 + 90 * seed) for seed in range(6)]
    alone = [(await driver.answer(ids, salt="full", max_new_tokens=16))[0] for ids in prompts]
    assert len({tuple(tokens) for tokens in alone}) == len(alone)
    assert all(len(set(tokens)) > 3 for tokens in alone)
    for ids, ordinary in zip(prompts, alone, strict=True):
        kept, end = await driver.answer(ids, plan(len(ids) - 1), salt="kept", max_new_tokens=16)
        assert kept == ordinary
        assert (end.kv_tokens, end.coverage) == (len(ids), pytest.approx(1.0, abs=1e-5))
    plans = [plan(len(ids) - 1) for ids in prompts[:-1]] + [plan(CAPACITY)]
    calls = zip(prompts, plans, strict=True)
    mixed = await asyncio.gather(*(driver.answer(ids, each, salt="mixed", max_new_tokens=16) for ids, each in calls))
    assert [tokens for tokens, _ in mixed[:-1]] == alone[:-1]
    await driver.empty()


async def test_dropped_kv_is_found_again(start: Any, plan: Any, prompt: Any, model: str) -> None:
    driver, ids = await start(model), prompt(7, 500)
    ordinary, _ = await driver.answer(ids, max_new_tokens=16)
    first, made = await driver.answer(ids, plan(CAPACITY), max_new_tokens=16)
    again, found = await driver.answer(ids, plan(CAPACITY), max_new_tokens=16)
    assert (made.reused_entry, made.kv_tokens, made.prompt_tokens) == (False, CAPACITY + 1, 500)
    assert (found.reused_entry, found.cached_tokens, found.kv_tokens) == (True, CAPACITY, CAPACITY + 1)
    # Most of the KV is gone, and with it the answer.
    assert first == again != ordinary
    assert 0 < made.coverage < 1
    await driver.empty()


async def test_dropped_kv_is_renewed(start: Any, renewing: Any, prompt: Any, model: str) -> None:
    driver, ids = await start(model), prompt(8, 500)
    tokens, end = await driver.answer(ids, renewing(CAPACITY, every=6, first=4), max_new_tokens=24)
    assert (len(tokens), end.renewals_skipped) == (24, 0)
    assert end.renewals >= 2
    assert end.kv_tokens < 200
    await driver.empty()
