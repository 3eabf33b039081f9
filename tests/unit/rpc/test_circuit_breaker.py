"""The circuit breaker: it opens after failures in a row, becomes half open after a time, and closes by one success."""

import pytest

from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker

OPEN, HALF, CLOSED = BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def changes():
    return []


@pytest.fixture
def breaker(changes, clock):
    return CircuitBreaker(failures=3, open_s=5.0, on_change=changes.append, clock=clock)


def fail(breaker, clock, times):
    for _ in range(times):
        breaker.record_failure(clock.now)


def test_opens_after_failures_in_a_row(breaker, changes, clock):
    fail(breaker, clock, 2)
    breaker.record_success()
    clock.now += 0.1
    fail(breaker, clock, 2)
    assert breaker.state is CLOSED and changes == [] and breaker.begin() == clock.now
    fail(breaker, clock, 1)
    assert breaker.state is OPEN and changes == [OPEN]


def test_refuses_attempts_until_its_time_is_over(breaker, clock):
    fail(breaker, clock, 3)
    assert breaker.begin() is None
    clock.now += 4.9
    assert breaker.begin() is None and breaker.state is OPEN


def test_outcomes_while_open_change_nothing(breaker, clock):
    fail(breaker, clock, 3)
    clock.now += 4.0
    breaker.record_success()
    fail(breaker, clock, 1)
    assert breaker.state is OPEN
    clock.now += 1.1
    assert breaker.state is HALF


def test_a_success_closes_it_when_half_open(breaker, changes, clock):
    fail(breaker, clock, 3)
    clock.now += 5.1
    assert breaker.state is HALF
    breaker.record_success()
    assert breaker.state is CLOSED and changes == [OPEN, HALF, CLOSED]


def test_a_failure_opens_it_again_when_half_open(breaker, changes, clock):
    fail(breaker, clock, 3)
    clock.now += 5.1
    fail(breaker, clock, 1)
    assert breaker.state is OPEN and changes == [OPEN, HALF, OPEN]
    clock.now += 5.1
    assert breaker.state is HALF


def test_one_probe_at_a_time_and_a_lost_probe_does_not_block_for_ever(breaker, changes, clock):
    fail(breaker, clock, 3)
    clock.now += 5.0
    assert [breaker.begin() for _ in range(3)] == [clock.now, None, None] and changes == [OPEN, HALF]
    clock.now += 5.0
    assert breaker.begin() == clock.now


def test_a_probe_that_fails_opens_it_and_the_next_that_succeeds_closes_it(breaker, changes, clock):
    fail(breaker, clock, 3)
    clock.now += 5.0
    breaker.record_failure(breaker.begin())
    assert breaker.begin() is None
    clock.now += 5.0
    assert breaker.begin() == clock.now
    breaker.record_success()
    assert breaker.begin() == clock.now and changes == [OPEN, HALF, OPEN, HALF, CLOSED]


def test_attempts_that_began_before_a_success_do_not_count(breaker, clock):
    began = clock.now
    clock.now += 0.04
    breaker.record_success()
    clock.now += 0.01
    for _ in range(100):
        breaker.record_failure(began)
    assert breaker.state is CLOSED


def test_breakers_are_independent(breaker, clock):
    other = CircuitBreaker(failures=3, open_s=5.0, clock=clock)
    fail(breaker, clock, 3)
    assert other.state is CLOSED
