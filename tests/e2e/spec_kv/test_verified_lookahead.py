"""A greedy answer begins with the lookahead's tokens that the target chose too; nothing else of an answer changes."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerDelta
from presift.core.generation import FinishReason, Grammar, GrammarKind, Sampling
from presift.target.engine import GenerateRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY, LOOKAHEAD, TOKENS = 64, 12, 30


def guessed(answer: list[int], right: int) -> tuple[int, ...]:
    """A lookahead whose first `right` tokens are those of `answer`."""
    return tuple(token if i < right else (token + 1) % 256 for i, token in enumerate(answer[:LOOKAHEAD]))


async def full(driver: Any, ids: list[int], **sampling: Any) -> list[int]:
    tokens, _ = await driver.answer(ids, salt="full", **{"max_new_tokens": TOKENS} | sampling)
    return list(tokens)


@pytest.mark.parametrize("case", [(8, 0), (8, 5), (8, LOOKAHEAD), (4096, 0), (4096, 1), (4096, LOOKAHEAD)], ids=str)
async def test_with_all_kv_kept_the_answer_is_that_of_full(
    start: Any, plan: Any, renewing: Any, prompt: Any, case: tuple[int, int]
) -> None:
    chunk_tokens, right = case
    driver = await start(prefill_chunk_tokens=chunk_tokens)
    for seed in range(2):
        ids = prompt(100 + seed, 60 + 97 * seed)
        ordinary = await full(driver, ids)
        chosen = plan(len(ids) - 1, lookahead=guessed(ordinary, right))
        renewed = renewing(len(ids) - 1, lookahead_token_ids=guessed(ordinary, right))
        for reused in (False, True):
            tokens, end = await driver.answer(ids, chosen, salt="kept", max_new_tokens=TOKENS)
            assert tokens == ordinary
            assert (end.accepted_tokens, end.reused_entry, end.completion_tokens) == (right, reused, TOKENS)
        tokens, end = await driver.answer(ids, renewed, salt="renewed", max_new_tokens=TOKENS)
        assert (tokens, end.accepted_tokens, end.renewals > 2) == (ordinary, right, True)
    await driver.empty()


async def test_the_rest_is_decoded_on_the_compressed_entry(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids, right = await start(), prompt(150, 300), 5
    ordinary = await full(driver, ids)
    lookahead = guessed(ordinary, right)
    tokens, made = await driver.answer(ids, plan(CAPACITY, lookahead=lookahead), max_new_tokens=TOKENS)
    # The same entry, and the same tokens behind it as the suffix.
    later = plan(CAPACITY, lookahead=lookahead, prompt_tokens=300)
    rest, found = await driver.answer(ids + ordinary[:right], later, max_new_tokens=TOKENS - right)

    assert tokens == ordinary[:right] + rest != ordinary
    assert (made.accepted_tokens, made.kv_tokens, made.completion_tokens) == (right, CAPACITY + 1, TOKENS)
    assert (found.accepted_tokens, found.reused_entry) == (0, True)
    await driver.empty()


async def test_they_come_before_the_first_decoded_token(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(151, 300)
    ordinary = await full(driver, ids)
    chosen = plan(CAPACITY, lookahead=guessed(ordinary, LOOKAHEAD))
    request = GenerateRequest(
        np.array(ids, dtype=np.uint32), Sampling(max_new_tokens=TOKENS, ignore_eos=True), "", chosen
    )
    async with aclosing(driver.engine.generate(request)) as events:
        first = await anext(events)
    assert isinstance(first, AnswerDelta)
    assert first.token_ids == tuple(ordinary[:LOOKAHEAD])
    await driver.empty()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.3, "seed": 7},
        {"top_logprobs": 2},
        {"logit_bias": {5: 1.0}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"min_new_tokens": 3},
        {"grammar": Grammar(GrammarKind.REGEX, "[ -~]*")},
    ],
    ids=str,
)
async def test_other_answers_are_decoded_from_the_first_token(
    start: Any, plan: Any, prompt: Any, sampling: dict[str, Any]
) -> None:
    driver = await start("tinyc")
    ids = [each % 250 for each in prompt(152, 200)]
    ordinary = await full(driver, ids, **sampling)
    chosen = plan(199, lookahead=guessed(ordinary, LOOKAHEAD))
    # Built by one that is greedy, then found by the other.
    for greedy in (False, True):
        salt = str(greedy)
        if greedy:
            _, begun = await driver.answer(ids, chosen, salt=salt, max_new_tokens=TOKENS)
        tokens, end = await driver.answer(ids, chosen, salt=salt, max_new_tokens=TOKENS, **sampling)
        assert (tokens, end.accepted_tokens, end.reused_entry) == (ordinary, 0, greedy)
    if sampling.keys() & {"top_logprobs", "min_new_tokens"}:
        # These do not change the choice, so the greedy caller has begun with the same tokens.
        assert begun.accepted_tokens == LOOKAHEAD
    await driver.empty()


@pytest.mark.parametrize("most", [1, 2, 7, LOOKAHEAD, LOOKAHEAD + 1])
async def test_at_least_one_token_is_decoded(start: Any, plan: Any, prompt: Any, most: int) -> None:
    driver, ids = await start(), prompt(153, 300)
    ordinary = await full(driver, ids)
    chosen = plan(299, lookahead=guessed(ordinary, LOOKAHEAD))
    tokens, end = await driver.answer(ids, chosen, max_new_tokens=most)

    assert (tokens, end.accepted_tokens) == (ordinary[:most], most - 1)
    assert (end.completion_tokens, end.finish_reason) == (most, FinishReason.LENGTH)
    await driver.empty()


async def test_a_stop_token_within_ends_the_answer_as_usual(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(154, 300)
    ordinary = await full(driver, ids)
    chosen = plan(299, lookahead=guessed(ordinary, LOOKAHEAD))
    stop = next(token for token in ordinary[3:LOOKAHEAD] if ordinary.index(token) >= 3)
    end_at = ordinary.index(stop)
    for _ in range(2):
        tokens, end = await driver.answer(ids, chosen, stop_token_ids=(stop,), max_new_tokens=TOKENS, ignore_eos=False)
        assert (tokens, end.accepted_tokens) == (ordinary[:end_at], end_at)
        assert (end.completion_tokens, end.finish_reason) == (end_at + 1, FinishReason.STOP)
    await driver.empty()


async def test_a_stop_string_within_ends_the_answer_as_usual(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start("tinyc")
    engine = driver.engine
    for seed in range(20):
        ids = [each % 250 for each in prompt(600 + seed, 200)]
        ordinary = await full(driver, ids)
        text = [engine._manager.tokenizer.decode([token]) for token in ordinary]
        at = next((i for i in range(3, 10) if (text[i] + text[i + 1]).isascii() and len(text[i] + text[i + 1]) == 2), 0)
        if at:
            break
    stop = text[at] + text[at + 1]
    expected, ended = await driver.answer(ids, salt="full", stop=(stop,), max_new_tokens=TOKENS)
    chosen = plan(199, lookahead=guessed(ordinary, LOOKAHEAD))
    tokens, end = await driver.answer(ids, chosen, stop=(stop,), max_new_tokens=TOKENS)

    assert tokens == expected
    assert (end.completion_tokens, end.finish_reason) == (ended.completion_tokens, FinishReason.STOP)
    assert 3 <= end.accepted_tokens < ended.completion_tokens <= at + 2
    await driver.empty()


async def test_callers_at_once_each_begin_if_they_may(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(155, 300)
    ordinary = await full(driver, ids)
    chosen = plan(299, lookahead=guessed(ordinary, 6))
    others = [{}, {"max_new_tokens": 4}, {"temperature": 1.0, "seed": 3}, {}]
    answers = await asyncio.gather(
        *(driver.answer(ids, chosen, **{"max_new_tokens": TOKENS} | each) for each in others)
    )
    assert [end.accepted_tokens for _, end in answers] == [6, 3, 0, 6]
    assert [answers[i][0] for i in (0, 1, 3)] == [ordinary, ordinary[:4], ordinary]
    assert sum(not end.reused_entry for _, end in answers) == 4
    await driver.empty()


async def test_aborts_right_after_leave_no_slot_missing(start: Any, plan: Any, renewing: Any, prompt: Any) -> None:
    driver, dice = await start(), random.Random(1)
    all_slots = await driver.empty()
    prompts = [prompt(700 + i, 100 + 31 * i) for i in range(8)]
    answers = [await full(driver, ids) for ids in prompts]

    async def one(number: int) -> None:
        ids, answer = prompts[number % 8], answers[number % 8]
        lookahead = guessed(answer, LOOKAHEAD)
        chosen = dice.choice((plan(48, lookahead=lookahead), renewing(48, 4, lookahead_token_ids=lookahead)))
        sampling = Sampling(max_new_tokens=200, ignore_eos=True)
        request = GenerateRequest(np.array(ids, dtype=np.uint32), sampling, str(number % 3), chosen)
        async with aclosing(driver.engine.generate(request)) as events:
            first = await anext(events)
            assert isinstance(first, AnswerDelta)
            assert first.token_ids == tuple(answer[:LOOKAHEAD])
            for _ in range(dice.choice((0, 0, 1, 3))):
                await anext(events)

    for begun in range(0, 80, 8):
        await asyncio.gather(*(one(begun + i) for i in range(8)))
    assert await driver.empty() == all_slots


async def test_retracted_answers_go_on_behind_them(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start("tinyl", kv_pool_tokens=1500)
    all_slots = await driver.empty()
    prompts = [prompt(4500 + i, 200) for i in range(12)]
    answers = [await full(driver, ids, max_new_tokens=300) for ids in prompts]
    # Twelve times 500 KV tokens in a pool of 1,500.
    plans = [plan(199, lookahead=guessed(answer, 8)) for answer in answers]
    found = await asyncio.gather(
        *(driver.answer(ids, each, max_new_tokens=300) for ids, each in zip(prompts, plans, strict=True))
    )
    assert [tokens for tokens, _ in found] == answers
    assert [end.accepted_tokens for _, end in found] == [8] * 12
    assert await driver.empty() == all_slots
