"""What spans a renewal behaves as without one: with all KV kept, each answer and its end are those of `full`."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerDelta, Finished, TokenLogprob
from presift.core.generation import FinishReason, Grammar, GrammarKind, Sampling
from presift.target.engine import GenerateRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENS = 40
# Renewals come so often that a few tokens always span one.
OFTEN = {"every": 2, "window": 8}


@pytest.fixture
def ids(prompt: Any) -> list[int]:
    """200 tokens, of those that are bytes."""
    return [token % 250 for token in prompt(800, 200)]


async def answered(
    driver: Any, ids: list[int], plan: Any, salt: str, **sampling: Any
) -> tuple[list[int], list[TokenLogprob], Finished]:
    wanted = Sampling(**{"max_new_tokens": TOKENS, "ignore_eos": True} | sampling)
    request = GenerateRequest(np.array(ids, dtype=np.uint32), wanted, salt, plan)
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    async with aclosing(driver.engine.generate(request)) as events:
        async for event in events:
            if not isinstance(event, AnswerDelta):
                return tokens, logprobs, event
            tokens += event.token_ids
            logprobs += event.logprobs
    raise AssertionError("the stream has no end")


@pytest.mark.parametrize("first", [0, 5], ids=lambda first: f"{first} on the full KV")
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.2, "seed": 11},
        {"temperature": 0.9, "top_p": 0.9, "min_p": 0.01, "seed": 2**63 + 5},
        {"logit_bias": {7: 2.0, 9: -100.0}},
        {"grammar": Grammar(GrammarKind.REGEX, "(ab|cd|[x-z]){30}")},
        {
            "grammar": Grammar(
                GrammarKind.JSON_SCHEMA, '{"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 9}'
            )
        },
    ],
    ids=str,
)
async def test_sampling_and_grammars_go_on(
    start: Any, renewing: Any, ids: list[int], sampling: dict[str, Any], first: int
) -> None:
    # Without penalties: under overlapped scheduling SGLang counts tokens one step late, but after any prefill at once.
    # So an answer with a penalty depends on what else is prefilled, also without a plan.
    driver = await start("tinyc")
    ordinary, _, _ = await answered(driver, ids, None, "full", **sampling)
    tokens, _, end = await answered(driver, ids, renewing(199, first=first, **OFTEN), "kept", **sampling)
    assert (tokens, end.renewals > 5, end.renewals_skipped) == (ordinary, True, 0)
    await driver.empty()


@pytest.mark.parametrize("first", [0, 5], ids=lambda first: f"{first} on the full KV")
async def test_log_probabilities_go_on(start: Any, renewing: Any, ids: list[int], first: int) -> None:
    driver = await start("tinyc")
    _, ordinary, _ = await answered(driver, ids, None, "full", top_logprobs=2)
    tokens, kept, end = await answered(driver, ids, renewing(199, first=first, **OFTEN), "kept", top_logprobs=2)

    assert [each.token_id for each in kept] == [each.token_id for each in ordinary] == tokens
    assert [each.logprob for each in kept] == pytest.approx([each.logprob for each in ordinary], abs=1e-4)
    assert [[token for token, _ in each.top] for each in kept] == [
        [token for token, _ in each.top] for each in ordinary
    ]
    assert end.renewals > 5
    await driver.empty()


@pytest.mark.parametrize("first", [0, 5], ids=lambda first: f"{first} on the full KV")
async def test_a_stop_string_is_found_across_a_renewal(start: Any, renewing: Any, prompt: Any, first: int) -> None:
    driver = await start("tinyc")
    decode = driver.engine._manager.tokenizer.decode
    found = 0
    for seed in range(80):
        ids = [token % 250 for token in prompt(900 + seed, 200)]
        ordinary, _, _ = await answered(driver, ids, None, "full")
        places = (
            place
            for place in range(12, TOKENS - 4)
            if len(text := decode(ordinary[place : place + 4])) == 4
            and text.isascii()
            and decode(ordinary).find(text) >= 12
        )
        if (place := next(places, None)) is None:
            continue
        stop = decode(ordinary[place : place + 4])
        expected, _, ended = await answered(driver, ids, None, "full", stop=(stop,))
        tokens, _, end = await answered(driver, ids, renewing(199, first=first, **OFTEN), "kept", stop=(stop,))
        assert tokens == expected
        assert (end.completion_tokens, end.finish_reason) == (ended.completion_tokens, FinishReason.STOP)
        assert end.renewals > 2
        found += 1
        if found == 3:
            break
    assert found == 3
    await driver.empty()


async def test_without_room_for_the_first_full_tokens_the_reply_says_so(start: Any, renewing: Any, prompt: Any) -> None:
    driver, ids = await start("tinyl", kv_pool_tokens=1500), prompt(810, 1200)
    _, end = await driver.answer(ids, renewing(64, 0, first=8), max_new_tokens=40)
    _, without = await driver.answer(ids, renewing(64, 0, first=8), max_new_tokens=400)
    assert (end.renewals, end.renewals_skipped, end.kv_tokens) == (1, 0, 65)
    assert (without.renewals, without.renewals_skipped, without.kv_tokens) == (0, 1, 65)
    await driver.empty()
