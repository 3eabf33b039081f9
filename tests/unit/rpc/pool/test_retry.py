"""Attempts: what goes on to another replica and what does not."""

import asyncio

import grpc
import pytest

from presift.core.errors import DraftUnavailable, Overloaded
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.rpc.pool.retry import AttemptedReplicas, RetryBudget, with_failover
from presift.rpc.status import DETAILS_KEY, details_of


def failing(code, *trailers):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers))


def asked(call, deadline, *attempts, has_untried=True, budget=None):
    return with_failover(
        call, deadline, *attempts, has_untried=lambda: has_untried, budget=RetryBudget() if budget is None else budget
    )


class Calls:
    """Each does the next of `outcomes`: raises it, or returns it."""

    def __init__(self, *outcomes):
        self.outcomes, self.count = list(outcomes), 0

    async def __call__(self):
        outcome = self.outcomes[self.count]
        self.count += 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


AWAY = failing(grpc.StatusCode.UNAVAILABLE)
SAYS_FULL = (DETAILS_KEY, details_of(Overloaded("waiting_requests", 1, 1, 1.0)))
FULL = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, SAYS_FULL)


@pytest.mark.parametrize("failure", [AWAY, failing(grpc.StatusCode.CANCELLED), FULL])
async def test_a_refused_call_is_retried_on_another_replica(failure):
    calls = Calls(failure, "here")
    assert await asked(calls, NO_DEADLINE) == "here"


@pytest.mark.parametrize(
    "code", ["DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "NOT_FOUND", "RESOURCE_EXHAUSTED"]
)
async def test_everything_else_is_final(code):
    calls = Calls(failing(getattr(grpc.StatusCode, code)), "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await asked(calls, NO_DEADLINE)
    assert calls.count == 1


async def test_a_full_replica_is_not_asked_again():
    calls = Calls(FULL, "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await asked(calls, NO_DEADLINE, has_untried=False)
    assert calls.count == 1
    assert await asked(Calls(AWAY, "here"), NO_DEADLINE, has_untried=False) == "here"


async def test_a_full_service_is_asked_a_fifth_more_and_not_three_times_as_much():
    budget, calls = RetryBudget(), Calls(*[FULL] * 1000)
    for _ in range(200):
        with pytest.raises(grpc.aio.AioRpcError):
            await asked(calls, NO_DEADLINE, budget=budget)
    assert 235 <= calls.count <= 251
    calls = Calls(*[AWAY] * 1000)  # a replica that is away is not asked, so this costs nobody anything
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError):
            await asked(calls, NO_DEADLINE, 2, budget=budget)
    assert calls.count == 40


async def test_the_last_attempt_takes_nothing_from_the_budget():
    budget = RetryBudget()
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError):
            await asked(Calls(FULL), NO_DEADLINE, 1, budget=budget)
    assert await asked(Calls(FULL, "here"), NO_DEADLINE, budget=budget) == "here"


def test_who_says_that_it_is_full():
    tried = AttemptedReplicas()
    for replica, failure in (("away", AWAY), ("full", FULL), ("grpc", failing(grpc.StatusCode.RESOURCE_EXHAUSTED))):
        with pytest.raises(grpc.aio.AioRpcError), tried.attempt(replica):
            raise failure
    assert (tried.all, tried.full) == (["away", "full", "grpc"], ["full"])


async def test_two_more_at_most():
    calls = Calls(AWAY, AWAY, FULL, "here")
    with pytest.raises(grpc.aio.AioRpcError) as last:
        await asked(calls, NO_DEADLINE)
    assert calls.count == 3 and last.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_single_attempt_if_one_is_set():
    calls = Calls(AWAY, "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await asked(calls, NO_DEADLINE, 1)
    assert calls.count == 1


async def test_not_when_the_time_is_over():
    calls = Calls(AWAY, "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await asked(calls, Deadline.within(0.0))
    assert calls.count == 1


async def test_errors_of_ours_and_cancellation_pass():
    for error in (DraftUnavailable("nobody"), asyncio.CancelledError()):
        calls = Calls(error, "here")
        with pytest.raises(type(error)):
            await asked(calls, Deadline.within(5.0))
        assert calls.count == 1


async def test_a_cancelled_caller_leaves_at_once():
    began = asyncio.Event()

    async def hang():
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(asked(hang, NO_DEADLINE))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
