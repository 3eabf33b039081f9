"""What the breaker of a replica hears of its calls."""

import asyncio
from unittest.mock import Mock

import grpc
import pytest

from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker
from presift.rpc.pool import replica as replica_module
from presift.rpc.pool.pool import FAILURES, OPEN_S
from presift.rpc.pool.replica import Replica, ReplicaStatus


@pytest.fixture
def replica():
    return Replica("a:1", Mock(), Mock(), CircuitBreaker(FAILURES, OPEN_S))


def failing(name):
    return grpc.aio.AioRpcError(getattr(grpc.StatusCode, name), grpc.aio.Metadata(), grpc.aio.Metadata())


def call(replica, error, timeout_s=30.0):
    with pytest.raises(type(error)), replica.record_outcome(timeout_s):
        raise error


@pytest.mark.parametrize(("name", "opens"), [("UNAVAILABLE", True), ("DEADLINE_EXCEEDED", True), ("INTERNAL", False)])
def test_what_opens_it(replica, name, opens):
    for _ in range(FAILURES):
        call(replica, failing(name))
    assert (replica.breaker.state is BreakerState.OPEN) is opens and replica.allows_call is not opens


def test_a_deadline_that_was_too_short_is_not_recorded(replica):
    for timeout_s in (0.5, None):
        for _ in range(FAILURES):
            call(replica, failing("DEADLINE_EXCEEDED"), timeout_s)
    assert replica.breaker.state is BreakerState.CLOSED


def test_a_disconnect_is_not_recorded(replica):
    for _ in range(FAILURES - 1):
        call(replica, failing("UNAVAILABLE"))
    call(replica, asyncio.CancelledError())
    call(replica, failing("UNAVAILABLE"))
    assert replica.breaker.state is BreakerState.OPEN


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as the replica reads them."""
    now = [100.0]
    monkeypatch.setattr(replica_module, "monotonic", lambda: now[0])
    return now


def leave(replica, clock, after_s, meanwhile=lambda: None):
    with pytest.raises(asyncio.CancelledError), replica.record_outcome(None):
        clock[0] += after_s
        meanwhile()
        raise asyncio.CancelledError


def test_a_replica_that_never_answers_has_failed(replica, clock):
    for _ in range(FAILURES):
        leave(replica, clock, 1.0)
    assert replica.breaker.state is BreakerState.OPEN


def answer(replica):
    with replica.record_outcome(None):
        pass


@pytest.mark.parametrize(
    ("after_s", "meanwhile"),
    [
        (0.9, lambda replica: None),
        (30.0, lambda replica: replica.record_message()),
        (30.0, answer),
        (30.0, lambda replica: call(replica, failing("INTERNAL"))),
    ],
)
def test_disconnects_do_not_open_the_breaker_of_a_working_replica(replica, clock, after_s, meanwhile):
    for _ in range(FAILURES * 2):
        leave(replica, clock, after_s, lambda: meanwhile(replica))
    assert replica.breaker.state is BreakerState.CLOSED


def test_its_failures_are_no_answer(replica, clock):
    for _ in range(FAILURES):
        leave(replica, clock, 1.0, lambda: call(replica, failing("DEADLINE_EXCEEDED"), 0.1))
    assert replica.breaker.state is BreakerState.OPEN


def test_any_answer_counts_as_one(replica):
    for _ in range(FAILURES * 3):
        call(replica, failing("UNAVAILABLE"))
        call(replica, failing("RESOURCE_EXHAUSTED"))
    assert replica.breaker.state is BreakerState.CLOSED


def test_half_open_takes_one_at_a_time(replica):
    replica.breaker = Mock(state=BreakerState.HALF_OPEN)
    assert replica.allows_call
    with replica.counted():
        assert not replica.allows_call
    assert replica.allows_call


@pytest.mark.parametrize(
    ("is_healthy", "breaker", "unused", "is_usable"),
    [
        (True, BreakerState.CLOSED, "", True),
        (True, BreakerState.HALF_OPEN, "", True),
        (True, BreakerState.OPEN, "", False),
        (False, BreakerState.CLOSED, "", False),
        (True, BreakerState.CLOSED, "another model", False),
    ],
)
def test_a_standing_says_whether_it_can_be_asked(is_healthy, breaker, unused, is_usable):
    assert ReplicaStatus("host:1", "draft", "", is_healthy, breaker, 0, unused).is_usable is is_usable
