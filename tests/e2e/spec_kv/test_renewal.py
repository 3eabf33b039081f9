"""Renewal: KV is selected anew while a request generates, and its answer goes on without a seam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv

pytestmark = pytest.mark.asyncio(loop_scope="session")

CAPACITY = 64


@pytest.fixture(scope="session")
def renewing() -> Callable[..., KvPlan]:
    """A plan of window 16 that renews every `every` tokens by the newest `window`, after `first` on the full KV."""

    def build(capacity: int, every: int = 6, window: int = 12, first: int = 0, **others: Any) -> KvPlan:
        policy = SpecKv(capacity, window=16, renew_every=every, renew_window=window, first_full_tokens=first)
        return KvPlan(policy, **others)

    return build


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
        assert (end.renewals, end.renewals_skipped) == (pytest.approx(6, abs=2), 0)
    await driver.empty()
