"""A compressed entry is an entry like any other: found again, continued, evicted, kept apart by salt, made anew."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from presift.core.errors import BudgetExceeded
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.core.policies import KvSelection, SpecKv
from presift.core.spans import Span
from presift.target.engine import GenerateRequest
from presift.target.sglang.messages import to_sglang
from presift.target.sglang.parsers import NO_PARSERS, Prepared
from presift.target.sglang_plugin.custom_params import KEY

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY = 64


async def test_the_same_prompt_and_plan_again_is_neither_read_nor_scored(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(1, 300)
    first, made = await driver.answer(ids, plan(CAPACITY))
    again, found = await driver.answer(ids, plan(CAPACITY))

    assert first == again
    assert (made.reused_entry, made.cached_tokens, made.kv_tokens) == (False, 0, CAPACITY + 1)
    assert (found.reused_entry, found.cached_tokens, found.kv_tokens) == (True, CAPACITY, CAPACITY + 1)
    assert (found.score_ms, found.publish_ms) == (0.0, 0.0)
    assert made.score_ms > 0 < made.publish_ms
    assert found.coverage == made.coverage
    assert 0 < made.coverage < 1
    await driver.empty()


@pytest.mark.parametrize(
    "other",
    [
        {"capacity": CAPACITY + 1},
        {"window": 17},
        {"lookahead": (3, 1, 4, 1, 6)},
        {"lookahead": ()},
        {"protected": (Span(5, 9),)},
    ],
    ids=str,
)
async def test_another_plan_is_another_entry(start: Any, plan: Any, prompt: Any, other: dict[str, Any]) -> None:
    driver, ids = await start(), prompt(2, 300)
    await driver.answer(ids, plan(CAPACITY))
    _, end = await driver.answer(ids, plan(**{"capacity": CAPACITY} | other))

    # The ordinary prompt is cached, up to the rows that score.
    assert (end.reused_entry, end.cached_tokens) == (False, 300 - 1 - other.get("window", 16))
    await driver.empty()


async def test_salts_share_neither_entries_nor_prompts(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(3, 300)
    ends = [(await driver.answer(ids, plan(CAPACITY), salt=salt))[1] for salt in ("a", "b", "a", "b")]

    assert [end.cached_tokens for end in ends] == [0, 0, CAPACITY, CAPACITY]
    assert [end.reused_entry for end in ends] == [False, False, True, True]
    await driver.empty()


async def test_an_entry_that_is_gone_is_made_again_within_the_call(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(4, 300)
    first, _ = await driver.answer(ids, plan(CAPACITY))
    await driver.empty()
    again, made = await driver.answer(ids, plan(CAPACITY))

    assert (again, made.reused_entry, made.cached_tokens) == (first, False, 0)
    # Without a build, the tokens that name the entry would be read in its place.
    assert made.score_ms > 0 < made.publish_ms
    await driver.empty()


async def test_a_later_turn_goes_on_with_the_entry(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids, turn = await start(), prompt(5, 300), prompt(6, 40)
    answer, _ = await driver.answer(ids, plan(CAPACITY), max_new_tokens=10)
    later, end = await driver.answer(ids + answer + turn, plan(CAPACITY, prompt_tokens=300))
    await driver.empty()
    anew, made = await driver.answer(ids + answer + turn, plan(CAPACITY, prompt_tokens=300))

    # The entry, the final prompt token, and the answer. Up to 0.5.21 SGLang caches its last token too, which overlapped
    # scheduling has fed.
    assert end.reused_entry and end.cached_tokens in (CAPACITY + 1 + 9, CAPACITY + 1 + 10)
    assert (end.prompt_tokens, end.kv_tokens) == (350, CAPACITY + 1 + 50)
    assert (later, made.reused_entry) == (anew, False)
    await driver.empty()


async def test_with_all_kept_a_later_turn_is_the_ordinary_conversation(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids, turn = await start(), prompt(7, 200), prompt(8, 300)
    ordinary, _ = await driver.answer(ids + turn, salt="ordinary")
    # Longer than a chunk, so that what follows the prompt is read in several.
    kept, _ = await driver.answer(ids + turn, plan(199, prompt_tokens=200))

    assert kept == ordinary
    await driver.empty()


@pytest.mark.parametrize("keep", [True, False])
async def test_the_mask_of_what_the_target_kept_gives_the_same_answer(
    start: Any, plan: Any, prompt: Any, keep: bool
) -> None:
    driver, ids = await start(), prompt(9, 300)
    answer, made = await driver.answer(ids, plan(CAPACITY, report_kept=True))
    assert np.array_equal(np.count_nonzero(made.kv_mask.kept, axis=2), np.full((4, 2), CAPACITY + 1))
    policy = SpecKv(capacity=CAPACITY, window=16, selection=KvSelection.DRAFT_MASK)
    same, end = await driver.answer(ids, KvPlan(policy, kv_mask=made.kv_mask, keep_full_prefix=keep), salt="mask")

    assert same == answer
    assert (end.kv_tokens, end.score_ms, end.coverage) == (CAPACITY + 1, 0.0, None)
    await driver.empty()


async def test_a_uniform_mask_keeps_the_same_tokens_everywhere(start: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(10, 200)
    flags = np.zeros((1, 1, 200), dtype=np.bool_)
    flags[..., np.random.default_rng(0).choice(183, 40, replace=False)] = True
    flags[..., 183:] = True
    policy = SpecKv(capacity=56, window=16, selection=KvSelection.DRAFT_MASK)
    uniform, end = await driver.answer(ids, KvPlan(policy, kv_mask=KvMask(flags)))
    spread = KvMask(np.broadcast_to(flags, (4, 2, 200)))
    per_head, _ = await driver.answer(ids, KvPlan(policy, kv_mask=spread), salt="per head")

    assert uniform == per_head
    assert end.kv_tokens == 57
    await driver.empty()


async def test_protected_spans_are_kept_in_every_layer_and_head(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids, spans = await start(), prompt(11, 300), (Span(3, 9), Span(120, 141))
    _, end = await driver.answer(ids, plan(CAPACITY, protected=spans, report_kept=True))

    for span in spans:
        assert end.kv_mask.kept[..., span.start : span.end].all()
    assert (np.count_nonzero(end.kv_mask.kept, axis=2) == CAPACITY + 1).all()
    await driver.empty()


async def test_a_prompt_that_fits_is_an_ordinary_one(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(12, CAPACITY)
    ordinary, _ = await driver.answer(ids, salt="ordinary")
    answer, end = await driver.answer(ids, plan(CAPACITY))

    assert (answer, end.kv_tokens, end.reused_entry) == (ordinary, CAPACITY, False)
    await driver.empty()


async def test_identical_requests_at_once_cost_one_scoring(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(13, 400)
    answers = await asyncio.gather(*(driver.answer(ids, plan(CAPACITY), max_new_tokens=20) for _ in range(12)))
    state = await driver.idle()

    assert len({tuple(tokens) for tokens, _ in answers}) == 1
    # One prompt, one entry, one answer with or without its last token: nothing was read or made twice.
    assert state["evictable_slots"] in (400 + CAPACITY + 1 + 19, 400 + CAPACITY + 1 + 20)
    await driver.empty()


async def test_seeds_temperature_and_stop_tokens_work(start: Any, plan: Any, prompt: Any) -> None:
    driver, ids = await start(), prompt(14, 300)
    sampling = {"temperature": 1.3, "top_p": 0.95, "top_k": 100, "max_new_tokens": 16}
    drawn = [(await driver.answer(ids, plan(CAPACITY), seed=seed, **sampling))[0] for seed in (7, 7, 8)]
    greedy, _ = await driver.answer(ids, plan(CAPACITY), max_new_tokens=16)
    stop = next(token for token in greedy[2:] if greedy.index(token) >= 2)
    stopped, end = await driver.answer(ids, plan(CAPACITY), stop_token_ids=(stop,), max_new_tokens=16, ignore_eos=False)

    assert drawn[0] == drawn[1] != drawn[2]
    assert stopped == greedy[: greedy.index(stop)]
    assert end.completion_tokens == len(stopped) + 1
    await driver.empty()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lora_path": "x"}, "lora"),
        ({"return_logprob": True, "logprob_start_len": 0}, "logprob_start_len"),
        ({"custom_logit_processor": "{}"}, "custom.logit.processor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_work_is_refused_inside_sglang(
    start: Any, plan: Any, prompt: Any, change: dict[str, Any], word: str
) -> None:
    driver = await start()
    request = GenerateRequest(np.array(prompt(15, 200), dtype=np.uint32), Sampling(), "", plan(CAPACITY))
    sent = to_sglang(request, NO_PARSERS, Prepared())
    for name, value in change.items():
        setattr(sent, name, value)
    with pytest.raises(ValueError, match=word):
        reason = [answer async for answer in driver.engine._manager.generate_request(sent)][-1]["meta_info"]
        raise ValueError(reason["finish_reason"]["message"])
    await driver.empty()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", KEY),
        ('{"capacity": -1}', "capacity"),
        ('{"capacity": 8, "window": 16}', "capacity"),
        ('{"capacity": 64, "kernel": 4}', "kernel"),
        ('{"capacity": 64, "pool": "median"}', "pool"),
        ('{"capacity": 64, "capcity": 64}', "capcity"),
        ('{"capacity": 64, "protected": [[0, 999]]}', "protected_spans"),
        ('{"capacity": 64, "prompt_tokens": 999}', "prompt_tokens"),
    ],
)
async def test_what_is_wrong_with_a_parameter_is_said(start: Any, prompt: Any, text: str, field: str) -> None:
    driver = await start()
    sent = to_sglang(GenerateRequest(np.array(prompt(16, 200), dtype=np.uint32)), NO_PARSERS, Prepared())
    sent.sampling_params["custom_params"] = {KEY: text}
    last = [answer async for answer in driver.engine._manager.generate_request(sent)][-1]["meta_info"]["finish_reason"]

    assert (last["type"], last["status_code"]) == ("abort", 400)
    assert field in last["message"]
    await driver.empty()


async def test_the_engine_itself_refuses_what_the_service_lets_pass(start: Any, plan: Any, prompt: Any) -> None:
    driver = await start()
    too_much = plan(CAPACITY, protected=(Span(0, 60),))
    with pytest.raises(BudgetExceeded, match="protected_spans"):
        await driver.answer(prompt(17, 300), too_much)

    await driver.empty()
