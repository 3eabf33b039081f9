"""What the breaker of a replica hears of its calls."""

import asyncio
from unittest.mock import Mock

import grpc
import pytest

from presift.rpc.replicas.breaker import FAILURES, Breaker, BreakerState
from presift.rpc.replicas.replica import Replica


@pytest.fixture
def replica():
    return Replica("a:1", Mock(), Mock(), Breaker("a:1", lambda to: None))


def failing(name):
    return grpc.aio.AioRpcError(getattr(grpc.StatusCode, name), grpc.aio.Metadata(), grpc.aio.Metadata())


def call(replica, error, timeout_s=30.0):
    with pytest.raises(type(error)), replica.judged(timeout_s):
        raise error


@pytest.mark.parametrize(("name", "opens"), [("UNAVAILABLE", True), ("DEADLINE_EXCEEDED", True), ("INTERNAL", False)])
def test_what_opens_it(replica, name, opens):
    for _ in range(FAILURES):
        call(replica, failing(name))
    assert (replica.breaker.state is BreakerState.OPEN) is opens and replica.may_be_asked is not opens


def test_a_caller_who_had_no_time_says_nothing(replica):
    for timeout_s in (0.5, None):
        for _ in range(FAILURES):
            call(replica, failing("DEADLINE_EXCEEDED"), timeout_s)
    assert replica.breaker.state is BreakerState.CLOSED


def test_a_caller_who_leaves_says_nothing(replica):
    for _ in range(FAILURES - 1):
        call(replica, failing("UNAVAILABLE"))
    call(replica, asyncio.CancelledError())
    call(replica, failing("UNAVAILABLE"))
    assert replica.breaker.state is BreakerState.OPEN


def test_any_answer_counts_as_one(replica):
    for _ in range(FAILURES * 3):
        call(replica, failing("UNAVAILABLE"))
        call(replica, failing("RESOURCE_EXHAUSTED"))
    assert replica.breaker.state is BreakerState.CLOSED


def test_half_open_takes_one_at_a_time(replica):
    replica.breaker = Mock(state=BreakerState.HALF_OPEN)
    assert replica.may_be_asked
    with replica.counted():
        assert not replica.may_be_asked
    assert replica.may_be_asked
