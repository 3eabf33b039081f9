"""Renewal: KV is selected anew while a request generates, and its answer goes on without a seam."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.core.spans import Span

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY = 64


@pytest.mark.parametrize("first", [0, 1, 9], ids=lambda first: f"{first} on the full KV")
@pytest.mark.parametrize("chunk_tokens", [128, 4096])
async def test_with_all_kv_kept_the_answer_is_that_of_full(
    start: Any, renewing: Any, prompt: Any, chunk_tokens: int, first: int
) -> None:
    driver = await start(prefill_chunk_tokens=chunk_tokens)
    for seed in range(10):
        ids = prompt(100 + seed, 60 + 37 * seed)
        ordinary, _ = await driver.answer(ids, salt="full", max_new_tokens=48)
        kept, end = await driver.answer(ids, renewing(len(ids) - 1, first=first), salt="kept", max_new_tokens=48)
        assert kept == ordinary
        assert (end.kv_tokens, end.prompt_tokens) == (len(ids), len(ids))
        assert end.coverage == pytest.approx(1.0, abs=1e-5)
        # Every six tokens, or every four where tokens are rare in the prompt.
        assert 4 <= end.renewals <= 11 and end.renewals_skipped == 0
    await driver.empty()


async def test_without_renewal_nothing_is_renewed(start: Any, renewing: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(200, 300)
    ordinary, _ = await driver.answer(ids, plan(CAPACITY, lookahead=()), salt="a", max_new_tokens=40)
    same, end = await driver.answer(ids, renewing(CAPACITY, every=0), salt="b", max_new_tokens=40)

    assert (same, end.renewals, end.renewals_skipped) == (ordinary, 0, 0)
    await driver.empty()


async def test_renewal_changes_the_answer_and_does_so_every_time(start: Any, renewing: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(201, 300)
    once, _ = await driver.answer(ids, renewing(CAPACITY, every=0), max_new_tokens=60)
    first, made = await driver.answer(ids, renewing(CAPACITY), max_new_tokens=60)
    again, found = await driver.answer(ids, renewing(CAPACITY), max_new_tokens=60)

    assert once[:6] == first[:6]
    assert once != first == again
    assert made.renewals == found.renewals >= 9
    assert made.kv_tokens == CAPACITY + 1
    await driver.empty()


async def test_a_new_mention_of_the_prompt_renews_sooner(start: Any, renewing: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(201, 300)
    # In the second prompt each token occurs twelve times, so none is rare.
    made = [
        (await driver.answer(each, renewing(CAPACITY), max_new_tokens=60))[1].renewals for each in (ids, ids[:25] * 12)
    ]
    assert made[0] > made[1] == 9
    await driver.empty()


async def test_an_answer_within_the_first_tokens_is_that_of_full(start: Any, renewing: Any, prompt: Any) -> None:
    driver = await start()
    for seed in range(30):
        ids = prompt(300 + seed, 100 + 23 * seed)
        ordinary, _ = await driver.answer(ids, salt="full", max_new_tokens=16)
        same, end = await driver.answer(ids, renewing(CAPACITY, first=16), salt="first", max_new_tokens=16)
        assert same == ordinary
        assert (end.kv_tokens, end.renewals, end.renewals_skipped) == (len(ids), 0, 0)
    await driver.empty()


async def test_the_kv_held_is_reported(start: Any, renewing: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(209, 300)
    cases = ((plan(CAPACITY), 65), (renewing(CAPACITY), 65), (plan(400), 300))
    for chosen, held in cases:
        _, end = await driver.answer(ids, chosen, max_new_tokens=41)
        # SGLang runs one step more than the answer needs.
        assert end.kv_tokens_peak == pytest.approx(held + 40, abs=1)
        assert end.kv_tokens_mean == pytest.approx(held + 20.5, abs=1)
    _, end = await driver.answer(ids, renewing(CAPACITY, 0, first=20), max_new_tokens=41)
    assert 320 <= end.kv_tokens_peak <= 330
    assert 65 + 30 < end.kv_tokens_mean < 0.7 * end.kv_tokens_peak
    _, end = await driver.answer(ids, max_new_tokens=41)
    assert (end.kv_tokens_peak, end.kv_tokens_mean) == (0, 0)
    await driver.empty()


async def test_what_a_renewal_selects_is_what_a_new_request_would(start: Any, renewing: Any, prompt: Any) -> None:
    driver, ids, begun = await start(), prompt(202, 300), 20
    spans = (Span(30, 40),)
    answer, end = await driver.answer(ids, renewing(CAPACITY, 0, first=begun, protected=spans), max_new_tokens=40)
    longer = ids + answer[:begun]
    # All of the answer is kept, and the final prompt token; the window is that of the renewal.
    policy = SpecKv(CAPACITY + begun, window=12)
    anew = KvPlan(policy, (*spans, Span(len(ids) - 1, len(longer) - 1)))
    _, selected = await driver.answer(longer, anew, salt="anew")

    assert (end.renewals, end.kv_tokens) == (1, CAPACITY + 1)
    assert end.coverage == pytest.approx(selected.coverage, abs=1e-5)
    await driver.empty()


async def test_a_suffix_is_kept_as_the_answer_is(start: Any, renewing: Any, prompt: Any) -> None:
    driver, ids, turn = await start(), prompt(203, 200), prompt(204, 50)
    ordinary, _ = await driver.answer(ids + turn, salt="ordinary", max_new_tokens=40)
    for first in (0, 5):
        chosen = renewing(199, first=first, prompt_tokens=200)
        kept, end = await driver.answer(ids + turn, chosen, salt=f"kept {first}", max_new_tokens=40)
        assert kept == ordinary
        assert (end.kv_tokens, end.renewals) == (250, pytest.approx(6, abs=1))
    await driver.empty()


async def test_many_renew_at_once_among_others(start: Any, renewing: Any, plan: Any, prompt: Any) -> None:
    driver = await start()
    prompts = [prompt(400 + i, 80 + 21 * i) for i in range(12)]
    alone = [(await driver.answer(ids, salt="full", max_new_tokens=60))[0] for ids in prompts]
    plans = [
        (None, renewing(len(ids) - 1), renewing(len(ids) - 1, 4, 40, first=7), plan(CAPACITY), renewing(CAPACITY, 5))[
            i % 5
        ]
        for i, ids in enumerate(prompts)
    ]
    answers = await asyncio.gather(
        *(driver.answer(ids, chosen, salt="b", max_new_tokens=60) for ids, chosen in zip(prompts, plans, strict=True))
    )
    for i, (tokens, end) in enumerate(answers):
        assert tokens == alone[i] or i % 5 in (3, 4)
        assert end.renewals_skipped == 0
        assert (end.renewals > 5) == (i % 5 in (1, 2, 4))
    await driver.empty()


async def test_sampling_stops_and_logprobs_go_on(start: Any, renewing: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(205, 300)
    chosen = renewing(299, first=1)
    sampling = {"temperature": 1.3, "top_p": 0.95, "top_k": 100, "max_new_tokens": 40, "seed": 7}
    drawn = [(await driver.answer(ids, each, salt=str(each is None), **sampling))[0] for each in (None, chosen, chosen)]
    greedy, _ = await driver.answer(ids, max_new_tokens=40)
    stop = next(token for token in greedy[25:] if greedy.index(token) >= 20)
    stopped, end = await driver.answer(ids, chosen, stop_token_ids=(stop,), max_new_tokens=40, ignore_eos=False)

    assert drawn[0] == drawn[1] == drawn[2]
    assert stopped == greedy[: greedy.index(stop)]
    assert end.renewals > 1
    await driver.empty()


async def test_a_later_turn_does_not_find_kv_of_a_renewed_answer(
    start: Any, renewing: Any, plan: Any, prompt: Any
) -> None:
    driver, ids, turn = await start(), prompt(207, 300), prompt(208, 40)
    answer, _ = await driver.answer(ids, renewing(CAPACITY), max_new_tokens=30)
    later = plan(CAPACITY, lookahead=(), prompt_tokens=300)
    tokens, end = await driver.answer(ids + answer + turn, later)
    await driver.empty()
    anew, _ = await driver.answer(ids + answer + turn, later)

    # The entry and the final prompt token, but none of the answer: its KV was made on other KV than the entry's.
    assert (end.reused_entry, end.cached_tokens) == (True, CAPACITY + 1)
    assert tokens == anew
    await driver.empty()


async def test_all_places_taken_leave_one_for_renewals(start: Any, renewing: Any, prompt: Any) -> None:
    driver = await start(max_running=3)
    assert driver.engine.info.max_running == 3
    prompts = [prompt(500 + i, 100 + 10 * i) for i in range(6)]
    alone = [(await driver.answer(ids, salt="full", max_new_tokens=60))[0] for ids in prompts]
    answers = await asyncio.gather(
        *(driver.answer(ids, renewing(len(ids) - 1), salt="b", max_new_tokens=60) for ids in prompts)
    )
    assert [tokens for tokens, _ in answers] == alone
    made = sum(end.renewals for _, end in answers)
    skipped = sum(end.renewals_skipped for _, end in answers)
    # They take turns in one place. Without it nearly all would be skipped.
    assert made > 40 and skipped <= made // 20
    await driver.empty()
