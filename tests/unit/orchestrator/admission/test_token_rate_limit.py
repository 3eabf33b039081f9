"""A tenant's tokens within a minute, counted in this process: a sliding window, by the monotonic clock."""

import time

from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.admission.token_rate_limit import MemoryTokenRateLimit

LIMIT = 100


class Clock:
    now_s = 12_345.0

    def __call__(self):
        return self.now_s


async def test_a_step_of_the_hosts_clock_neither_ends_nor_prolongs_a_minute(monkeypatch):
    clock, wall_s = Clock(), time.time()
    rate = MemoryTokenRateLimit(clock=clock)
    monkeypatch.setattr(time, "time", lambda: wall_s)
    assert await rate.take("acme", LIMIT, LIMIT) is None
    for step_s in (3600, -7200):
        wall_s += step_s
        assert await rate.take("acme", 1, LIMIT) == 0
    clock.now_s += 120
    assert await rate.take("acme", LIMIT, LIMIT) is None


async def test_tokens_of_a_minute_ago_count_by_their_share_of_the_window():
    clock = Clock()
    clock.now_s = 60_000.0  # a minute begins
    rate = MemoryTokenRateLimit(clock=clock)
    assert await rate.take("acme", 80, LIMIT) is None
    assert await rate.take("acme", 21, LIMIT) == 20 and await rate.take("other", 21, LIMIT) is None
    clock.now_s += 60 + 15  # three quarters of them: 60
    assert await rate.take("acme", 41, LIMIT) == 40 and await rate.take("acme", 40, LIMIT) is None
    await rate.give_back("acme", 30, LIMIT)
    assert await rate.take("acme", 31, LIMIT) == 30 and await rate.take("acme", 30, LIMIT) is None


async def test_tokens_return_to_the_minute_in_which_they_were_taken():
    """Returned to the next one, they would be its tenant's a second time."""
    clock = Clock()
    clock.now_s = 60_000.0 + 59
    rate = MemoryTokenRateLimit(clock=clock)
    assert await rate.take("acme", 90, LIMIT) is None
    clock.now_s += 2
    await rate.give_back("acme", 80, LIMIT, 2.0)
    assert await rate.take("acme", LIMIT, LIMIT) == LIMIT - 9  # of the 10 tokens used 59/60 count, rounded down
    assert await rate.take("acme", 50, LIMIT) is None
    clock.now_s += 1
    await rate.give_back("acme", 20, LIMIT, 1.0)
    assert await rate.take("acme", LIMIT, LIMIT) == LIMIT - 39


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, LIMIT), st.floats(0, 50), st.floats(0, 1)), max_size=30))
async def test_with_returns_too_no_minute_of_the_clock_has_more_than_the_limit(calls):
    """Calls of a tenant, one after the other: (seconds before it, tokens taken, seconds, share returned)."""
    clock, used = Clock(), {}
    rate = MemoryTokenRateLimit(clock=clock)
    for later_s, tokens, lasts_s, share in calls:
        clock.now_s += later_s
        minute = clock.now_s // 60
        if await rate.take("acme", tokens, LIMIT) is None:
            clock.now_s += lasts_s
            unused = int(share * tokens)
            await rate.give_back("acme", unused, LIMIT, lasts_s)
            used[minute] = used.get(minute, 0) + tokens - unused
            assert used[minute] <= LIMIT


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, LIMIT)), max_size=30))
async def test_no_minute_of_the_clock_has_more_than_the_limit(calls):
    clock, taken = Clock(), {}
    rate = MemoryTokenRateLimit(clock=clock)
    for later_s, tokens in calls:
        clock.now_s += later_s
        minute = clock.now_s // 60
        left = await rate.take("acme", tokens, LIMIT)
        if left is None:
            taken[minute] = taken.get(minute, 0) + tokens
        assert taken.get(minute, 0) <= LIMIT and (left is None or 0 <= left < tokens)


async def test_a_tenant_that_is_gone_is_forgotten():
    clock = Clock()
    rate = MemoryTokenRateLimit(clock=clock)
    for number in range(100):
        await rate.take(f"tenant {number}", 1, LIMIT)
        clock.now_s += 60
    assert len(rate._before) + len(rate._current) <= 4
