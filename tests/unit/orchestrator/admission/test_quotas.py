"""Quotas in one process: taken before, corrected after, and what happens while nobody can tell."""

import asyncio

import pytest

from presift.cache.redis_client import CacheUnavailable
from presift.cache.store import Outcome
from presift.core.errors import InvalidRequest, Overloaded, TargetUnavailable
from presift.orchestrator.admission import quotas as module
from presift.orchestrator.admission.concurrency_limit import MemoryConcurrencyLimit
from presift.orchestrator.admission.quotas import FailureMode, Quotas
from presift.orchestrator.admission.token_rate_limit import TokenRateLimit
from presift.orchestrator.domain.caller import Limits

LIMITS = Limits(tokens_per_minute=100)


async def left(allowances, tenant="acme"):
    """What the tenant may still use."""
    found = await allowances._rates.take(tenant, 100, 100)
    if found is None:
        await allowances._rates.give_back(tenant, 100, 100)
        return 100
    return found


async def test_what_was_not_used_is_given_back():
    allowances = Quotas()
    async with allowances.held("acme", LIMITS) as allowance:
        await allowance.spend(20, 70)
        assert await left(allowances) == 10
        allowance.delivered(3)
        allowance.delivered(2)
    assert await left(allowances) == 75
    assert await left(allowances, "other") == 100


async def test_over_the_limit_is_told_with_a_time():
    allowances = Quotas()
    async with allowances.held("acme", LIMITS) as first:
        await first.spend(50, 30)
        with pytest.raises(Overloaded) as refused:
            async with allowances.held("acme", LIMITS) as second:
                await second.spend(40, 10)
    error = refused.value
    assert (error.field, error.value, error.limit) == ("tokens_per_minute", 50, 100)
    assert error.retry_after_s == pytest.approx(60 * 30 / 100)
    assert await left(allowances) == 50  # the refused one has taken nothing


async def test_more_than_a_minute_has_is_no_matter_of_waiting():
    allowances = Quotas()
    with pytest.raises(InvalidRequest, match="tokens_per_minute") as refused:
        async with allowances.held("acme", LIMITS) as allowance:
            await allowance.spend(50, 51)
    assert "100" in refused.value.limit and await left(allowances) == 100


async def test_an_error_before_the_first_token_costs_nothing():
    allowances = Quotas()
    for delivered, expected in ((0, 100), (5, 75)):
        with pytest.raises(TargetUnavailable):
            async with allowances.held("acme", LIMITS) as allowance:
                await allowance.spend(20, 70)
                allowance.delivered(delivered)
                raise TargetUnavailable("gone")
        assert await left(allowances) == expected


async def test_leaving_costs_the_prompt():
    """Else a caller could have prompts read for nothing."""
    allowances, begun = Quotas(), asyncio.Event()

    async def call():
        async with allowances.held("acme", LIMITS) as allowance:
            await allowance.spend(20, 70)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await begun.wait()
    task.cancel()
    await asyncio.wait((task,))
    assert await left(allowances) == 80


async def test_nothing_comes_back_after_the_window(monkeypatch):
    allowances = Quotas()
    async with allowances.held("acme", LIMITS) as allowance:
        await allowance.spend(20, 70)
        monkeypatch.setattr(module, "WINDOW_S", -1.0)
    assert await left(allowances) == 10


async def test_so_many_calls_at_once():
    allowances, limits = Quotas(), Limits(concurrency=2)
    async with allowances.held("acme", limits), allowances.held("acme", limits), allowances.held("other", limits):
        with pytest.raises(Overloaded) as refused:
            async with allowances.held("acme", limits):
                raise AssertionError("let in")
        assert (refused.value.field, refused.value.limit, refused.value.retry_after_s) == ("concurrency", 2, 1.0)
        with pytest.raises(Overloaded):  # the refused one has left nothing and taken nobody's place
            async with allowances.held("acme", limits):
                raise AssertionError("let in")
    async with allowances.held("acme", limits), allowances.held("acme", limits):
        pass
    assert not allowances._leases._held


class Away(TokenRateLimit):
    """A Redis that does not answer."""

    async def take(self, *arguments):
        raise CacheUnavailable(Outcome.TIMEOUT)

    give_back = claim = release = take

    async def aclose(self):
        pass


async def test_trouble_is_told_once_and_so_is_its_end(caplog):
    allowances = Quotas(Away(), MemoryConcurrencyLimit(), FailureMode.OPEN)
    for _ in range(3):
        async with allowances.held("acme", Limits(100, None)) as allowance:
            await allowance.spend(20, 70)
    allowances._rates = TokenRateLimit()
    for _ in range(2):
        async with allowances.held("acme", Limits(1000, None)) as allowance:
            await allowance.spend(20, 70)
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert told == [
        "tenants' limits cannot be counted, the cache's server does not answer: calls are let in",
        "tenants' limits are counted again",
    ]


async def test_trouble_lets_in_or_refuses():
    both = Limits(100, 1)
    opened = Quotas(Away(), Away(), FailureMode.OPEN)
    async with opened.held("acme", both) as allowance, opened.held("acme", both):
        await allowance.spend(20, 70)
    closed = Quotas(Away(), Away(), FailureMode.CLOSED)
    with pytest.raises(Overloaded, match="nobody can tell") as refused:
        async with closed.held("acme", both):
            raise AssertionError("let in")
    assert refused.value.field == "concurrency" and refused.value.retry_after_s > 0
    with pytest.raises(Overloaded) as refused:
        async with closed.held("acme", LIMITS) as allowance:
            await allowance.spend(20, 70)
    assert refused.value.field == "tokens_per_minute"


async def test_who_has_no_limits_is_not_asked():
    class Never(Away):
        async def take(self, *arguments):
            raise AssertionError("asked")

        give_back = claim = release = take

    allowances = Quotas(Never(), Never(), FailureMode.CLOSED)
    async with allowances.held(None, Limits()) as allowance:
        await allowance.spend(10**9, 10**9)
        allowance.delivered(3)
    assert not allowances._endings
