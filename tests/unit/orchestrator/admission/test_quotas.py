"""Quotas in one process: reserved before, corrected after, and what happens while usage is unavailable."""

import asyncio

import pytest

from presift.cache.ongoing_failures import QUIET_S, OngoingFailures
from presift.cache.redis_client import CacheUnavailable
from presift.cache.store import Outcome
from presift.core.errors import BudgetExceeded, InvalidRequest, Overloaded, TargetUnavailable
from presift.orchestrator.admission import quotas as quotas_module
from presift.orchestrator.admission.quotas import FailureMode, Quotas
from presift.orchestrator.admission.token_rate_limit import MemoryTokenRateLimit
from presift.orchestrator.domain.caller import TenantLimits

LIMITS = TenantLimits(tokens_per_minute=100)


async def left(quotas, tenant="acme"):
    """The tokens that the tenant may still use."""
    found = await quotas._rate.take(tenant, 100, 100)
    if found is None:
        await quotas._rate.give_back(tenant, 100, 100)
        return 100
    return found


async def test_unused_tokens_are_returned():
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as quota:
        await quota.reserve(20, max_new_tokens=70)
        assert await left(quotas) == 10
        quota.record_generated(3)
        quota.record_generated(2)
    assert await left(quotas) == 75
    assert await left(quotas, "other") == 100


async def test_over_the_limit_the_error_says_when_to_retry():
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as first:
        await first.reserve(50, max_new_tokens=30)
        with pytest.raises(Overloaded) as refused:
            async with quotas.held("acme", LIMITS) as second:
                await second.reserve(40, max_new_tokens=10)
    error = refused.value
    assert (error.field, error.value, error.limit) == ("tokens_per_minute", 50, 100)
    assert error.retry_after_s == pytest.approx(60 * 30 / 100)
    assert await left(quotas) == 50  # the rejected one has reserved nothing


async def test_more_tokens_than_a_minute_allows_are_invalid():
    quotas = Quotas()
    with pytest.raises(InvalidRequest, match="tokens_per_minute") as refused:
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve(50, max_new_tokens=51)
    assert "100" in refused.value.limit and await left(quotas) == 100


async def test_a_callers_own_error_costs_the_prompt():
    """Otherwise a strict budget that cannot be met would be a way to have prompts scored for free."""
    quotas = Quotas()
    with pytest.raises(BudgetExceeded):
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve(20, max_new_tokens=70)
            raise BudgetExceeded("budget.min_coverage", 0.5, ">= 0.9")
    assert await left(quotas) == 80


async def test_a_failure_of_the_service_before_the_first_token_costs_nothing():
    quotas = Quotas()
    for generated, expected in ((0, 100), (5, 75)):
        with pytest.raises(TargetUnavailable):
            async with quotas.held("acme", LIMITS) as quota:
                await quota.reserve(20, max_new_tokens=70)
                quota.record_generated(generated)
                raise TargetUnavailable("gone")
        assert await left(quotas) == expected


async def test_a_disconnect_costs_the_prompt():
    """Otherwise a caller could have prompts read for free."""
    quotas, begun = Quotas(), asyncio.Event()

    async def call():
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve(20, max_new_tokens=70)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await begun.wait()
    task.cancel()
    await asyncio.wait((task,))
    assert await left(quotas) == 80


async def test_nothing_is_returned_after_the_window(monkeypatch):
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as quota:
        await quota.reserve(20, max_new_tokens=70)
        monkeypatch.setattr(quotas_module, "WINDOW_S", -1.0)
    assert await left(quotas) == 10


async def test_over_the_limit_a_prompt_is_refused_by_its_estimate():
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as first:
        await first.reserve_estimate(30, max_new_tokens=40)
        with pytest.raises(Overloaded) as refused:
            async with quotas.held("acme", LIMITS) as second:
                await second.reserve_estimate(31, max_new_tokens=0)
        assert (refused.value.field, refused.value.value) == ("tokens_per_minute", 31)
        await first.reserve(40, max_new_tokens=40)  # the estimate was too low
        assert await left(quotas) == 20
        first.record_generated(5)
    assert await left(quotas) == 55


async def test_an_estimate_that_is_too_high_refuses_nothing_for_good():
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as quota:
        await quota.reserve_estimate(500, max_new_tokens=40)
        await quota.reserve(30, max_new_tokens=20)
    assert await left(quotas) == 70


async def test_an_estimate_that_is_too_high_is_corrected_while_the_request_runs():
    """An answer may take minutes: its tenant must not wait for tokens that nothing uses."""
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as quota:
        await quota.reserve_estimate(80, max_new_tokens=10)
        assert await left(quotas) == 10
        await quota.reserve(10, max_new_tokens=10)
        assert await left(quotas) == 80
        quota.record_generated(5)
    assert await left(quotas) == 85


class SlowToReturn(MemoryTokenRateLimit):
    """Returns tokens once `answers` is set, as a Redis that is slow."""

    def __init__(self):
        super().__init__()
        self.answers = asyncio.Event()

    async def give_back(self, *args):
        await self.answers.wait()
        await super().give_back(*args)


async def test_a_slow_redis_does_not_delay_a_request_whose_estimate_was_too_high():
    rate = SlowToReturn()
    quotas = Quotas(rate)
    async with quotas.held("acme", LIMITS) as quota:
        await quota.reserve_estimate(80, max_new_tokens=10)
        asyncio.get_running_loop().call_later(5, rate.answers.set)
        await quota.reserve(10, max_new_tokens=10)
        assert await left(quotas) == 10, "it has waited for Redis"
        rate.answers.set()
        await quotas.aclose()
        assert await left(quotas) == 80
        quota.record_generated(5)
    assert await left(quotas) == 85


async def test_a_request_that_is_cancelled_meanwhile_returns_its_tokens_once():
    rate = SlowToReturn()
    quotas = Quotas(rate)

    async def request():
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve_estimate(80, max_new_tokens=10)
            await quota.reserve(10, max_new_tokens=10)
            await asyncio.Event().wait()

    running = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait((running,), timeout=0.01)
    rate.answers.set()
    await asyncio.wait((running,))
    await quotas.aclose()
    assert await left(quotas) == 90  # the prompt was tokenized


async def test_a_prompt_that_was_tokenized_and_is_more_than_a_minute_allows_costs_its_estimate():
    quotas = Quotas()
    with pytest.raises(InvalidRequest):
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve_estimate(30, max_new_tokens=10)
            await quota.reserve(500, max_new_tokens=10)
    assert await left(quotas) == 60


async def test_an_exact_number_that_no_minute_allows_is_invalid_at_once_and_costs_nothing():
    quotas = Quotas()
    with pytest.raises(InvalidRequest):
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve_estimate(50, max_new_tokens=51, is_exact=True)
    assert await left(quotas) == 100


async def test_an_estimate_that_waited_longer_than_the_window_is_reserved_again(monkeypatch):
    quotas = Quotas()
    async with quotas.held("acme", LIMITS) as quota:
        await quota.reserve_estimate(20, max_new_tokens=20)
        monkeypatch.setattr(quotas_module, "WINDOW_S", -1.0)
        await quota.reserve(20, max_new_tokens=20)
    assert await left(quotas) == 20


@pytest.mark.parametrize("taken", [True, False])
async def test_who_leaves_while_tokens_are_taken_loses_none(taken):
    """As with Redis: the tokens are taken before the answer arrives."""
    quotas, sent, answered = Quotas(), asyncio.Event(), asyncio.Event()
    take = quotas._rate.take

    async def slow(*arguments):
        found = await take(*arguments)
        sent.set()
        await answered.wait()
        return found

    async def call():
        async with quotas.held("acme", LIMITS) as quota:
            await quota.reserve(70, max_new_tokens=0)

    if not taken:
        await take("acme", 60, 100)
    quotas._rate.take = slow
    task = asyncio.create_task(call())
    await sent.wait()
    task.cancel()
    await asyncio.sleep(0)
    answered.set()
    await asyncio.wait((task,))
    await quotas.aclose()
    quotas._rate.take = take
    assert task.cancelled() and await left(quotas) == (100 if taken else 40)


async def test_concurrent_requests_are_limited():
    quotas, limits = Quotas(), TenantLimits(concurrency=2)
    async with quotas.held("acme", limits), quotas.held("acme", limits), quotas.held("other", limits):
        with pytest.raises(Overloaded) as refused:
            async with quotas.held("acme", limits):
                raise AssertionError("admitted")
        assert (refused.value.field, refused.value.limit, refused.value.retry_after_s) == ("concurrency", 2, 1.0)
        with pytest.raises(Overloaded):  # the rejected one has claimed nothing
            async with quotas.held("acme", limits):
                raise AssertionError("admitted")
    async with quotas.held("acme", limits), quotas.held("acme", limits):
        pass
    assert not quotas._concurrency._held


class UnavailableRedis:
    """A Redis that does not answer, or refuses with `code`."""

    def __init__(self, code=""):
        self.code = code

    async def take(self, *arguments):
        raise CacheUnavailable(Outcome.ERROR if self.code else Outcome.TIMEOUT, self.code)

    give_back = claim = release = take

    async def aclose(self):
        pass


@pytest.mark.parametrize(
    ("code", "reason"), [("", "Redis does not answer"), ("NOPERM", "Redis refuses to count usage (NOPERM)")]
)
async def test_a_failure_is_logged_once_and_so_is_its_end(caplog, code, reason):
    quotas, now = Quotas(on_failure=FailureMode.OPEN), [0.0]
    quotas._failures = OngoingFailures(lambda: now[0])
    working, failing = quotas._rate, UnavailableRedis(code)

    async def requests():
        for rate in (failing, working, failing, working, working):  # it comes and goes: still one state
            quotas._rate = rate
            async with quotas.held("acme", TenantLimits(1000, None)) as quota:
                await quota.reserve(20, max_new_tokens=70)

    await requests()
    now[0] += QUIET_S
    quotas._rate = working
    async with quotas.held("acme", TenantLimits(1000, None)) as quota:
        await quota.reserve(20, max_new_tokens=70)
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == [
        f"{reason}: tenant limits are not enforced",
        "Redis has counted all usage for 60 s: tenant limits are enforced",
    ]


async def test_a_failure_admits_or_rejects():
    both = TenantLimits(100, 1)
    opened = Quotas(UnavailableRedis(), UnavailableRedis(), FailureMode.OPEN)
    async with opened.held("acme", both) as quota, opened.held("acme", both):
        await quota.reserve(20, max_new_tokens=70)
    closed = Quotas(UnavailableRedis(), UnavailableRedis(), FailureMode.CLOSED)
    with pytest.raises(Overloaded, match="concurrency usage is unavailable") as refused:
        async with closed.held("acme", both):
            raise AssertionError("admitted")
    assert refused.value.field == "concurrency" and refused.value.retry_after_s > 0
    with pytest.raises(Overloaded) as refused:
        async with closed.held("acme", LIMITS) as quota:
            await quota.reserve(20, max_new_tokens=70)
    assert refused.value.field == "tokens_per_minute"


async def test_without_limits_nothing_is_counted():
    class Never(UnavailableRedis):
        async def take(self, *arguments):
            raise AssertionError("counted")

        give_back = claim = release = take

    quotas = Quotas(Never(), Never(), FailureMode.CLOSED)
    async with quotas.held(None, TenantLimits()) as quota:
        await quota.reserve(10**9, max_new_tokens=10**9)
        quota.record_generated(3)
    assert not quotas._releases
