"""The breaker: opens by failures in a row, half opens by time, closes by one answer."""

import time

import pytest

from presift.rpc.pool.circuit_breaker import BreakerState, CircuitBreaker

OPEN, HALF, CLOSED = BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED


@pytest.fixture
def clock(monkeypatch):
    """Seconds that can be added."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def later(seconds):
        now[0] += seconds

    return later


@pytest.fixture
def moves():
    return []


@pytest.fixture
def breaker(moves, clock):
    return CircuitBreaker("a:1", moves.append, failures=3, open_s=5.0)


def opened(breaker):
    for _ in range(3):
        breaker.failed()


def test_it_opens_by_failures_in_a_row(breaker, moves):
    for _ in range(2):
        breaker.failed()
    breaker.answered()
    for _ in range(2):
        breaker.failed()
    assert breaker.state is CLOSED and moves == []
    breaker.failed()
    assert breaker.state is OPEN and moves == [OPEN]


def test_what_ends_while_it_is_open_says_nothing(breaker):
    opened(breaker)
    breaker.answered()
    breaker.failed()
    assert breaker.state is OPEN


def test_after_its_time_an_answer_closes_it(breaker, moves, clock):
    opened(breaker)
    clock(4.9)
    assert breaker.state is OPEN
    clock(0.2)
    assert breaker.state is HALF
    breaker.answered()
    assert breaker.state is CLOSED and moves == [OPEN, HALF, CLOSED]


def test_after_its_time_a_failure_opens_it_again(breaker, moves, clock):
    opened(breaker)
    clock(5.1)
    breaker.failed()
    assert breaker.state is OPEN and moves == [OPEN, HALF, OPEN]
    clock(5.1)
    assert breaker.state is HALF


def test_breakers_are_apart(breaker, clock):
    other = CircuitBreaker("a:1", lambda to: None, failures=3, open_s=5.0)
    opened(breaker)
    assert other.state is CLOSED
