"""Attempts: what goes on to another replica and what does not."""

import asyncio

import grpc
import pytest

from presift.core.errors import DraftUnavailable
from presift.rpc.replicas.attempts import Patience, attempted


def failing(code):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


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


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"])
async def test_who_did_nothing_gives_way(code):
    calls = Calls(failing(getattr(grpc.StatusCode, code)), "here")
    assert await attempted(calls, Patience(None)) == "here"


@pytest.mark.parametrize("code", ["DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "NOT_FOUND"])
async def test_everything_else_is_final(code):
    calls = Calls(failing(getattr(grpc.StatusCode, code)), "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await attempted(calls, Patience(None))
    assert calls.count == 1


async def test_two_more_at_most():
    calls = Calls(AWAY, AWAY, failing(grpc.StatusCode.RESOURCE_EXHAUSTED), "here")
    with pytest.raises(grpc.aio.AioRpcError) as last:
        await attempted(calls, Patience(None))
    assert calls.count == 3 and last.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_one_where_one_is_said():
    calls = Calls(AWAY, "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await attempted(calls, Patience(None), 1)
    assert calls.count == 1


async def test_not_when_the_time_is_over():
    calls = Calls(AWAY, "here")
    with pytest.raises(grpc.aio.AioRpcError):
        await attempted(calls, Patience(0.0))
    assert calls.count == 1


async def test_errors_of_ours_and_cancellation_pass():
    for error in (DraftUnavailable("nobody"), asyncio.CancelledError()):
        calls = Calls(error, "here")
        with pytest.raises(type(error)):
            await attempted(calls, Patience(5.0))
        assert calls.count == 1


async def test_a_cancelled_caller_leaves_at_once():
    began = asyncio.Event()

    async def hang():
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(attempted(hang, Patience(None)))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


def test_patience():
    assert Patience(None).left_s is None
    assert 0 < Patience(100.0).left_s <= 100 and Patience(-1.0).left_s == 0.0
