"""The guard: when a failing server is left alone, and when it is tried again."""

from presift.cache.circuit_breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rested(failures: int = 3) -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    guard = CircuitBreaker(failures=3, rest_s=1.0, clock=clock)
    for _ in range(failures):
        guard.failed(0.0)
    return guard, clock


def test_failures_below_the_limit_change_nothing() -> None:
    guard, _ = rested(failures=2)
    assert guard.begin() == 0.0 and not guard.is_resting


def test_a_success_between_failures_starts_the_count_anew() -> None:
    guard, clock = rested(failures=2)
    guard.succeeded()
    clock.now = 0.1
    guard.failed(0.05)
    assert guard.begin() is not None


def test_after_enough_failures_nothing_is_allowed_until_the_rest_is_over() -> None:
    guard, clock = rested()
    assert guard.is_resting and guard.begin() is None
    clock.now = 0.99
    assert guard.begin() is None


def test_one_probe_per_rest_and_a_lost_probe_does_not_block_for_ever() -> None:
    guard, clock = rested()
    clock.now = 1.0
    assert [guard.begin() for _ in range(3)] == [1.0, None, None]
    clock.now = 2.0
    assert guard.begin() == 2.0


def test_a_probe_that_works_ends_the_rest_and_one_that_fails_prolongs_it() -> None:
    guard, clock = rested()
    clock.now = 1.0
    assert guard.begin() == 1.0
    guard.failed(1.0)
    clock.now = 1.5
    assert guard.begin() is None
    clock.now = 2.0
    assert guard.begin() == 2.0
    guard.succeeded()
    assert guard.begin() == 2.0 and not guard.is_resting


def test_those_who_waited_too_long_in_a_burst_are_no_sign_of_a_dead_server() -> None:
    guard, clock = rested(failures=0)
    clock.now = 0.04
    guard.succeeded()
    clock.now = 0.05
    for _ in range(100):
        guard.failed(0.0)
    assert not guard.is_resting
