"""Ongoing failures: a state begins and ends once, whatever happens in between."""

import pytest

from presift.cache.ongoing_failures import QUIET_S, OngoingFailures


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def failures(now):
    return OngoingFailures(lambda: now[0])


def test_a_reason_is_new_once(failures):
    assert [failures.record_failure("OOM") for _ in range(3)] == [True, False, False]
    assert failures.record_failure("NOPERM") and not failures.record_failure("OOM")


def test_successes_in_between_end_nothing(failures, now):
    """On a full server reads succeed and writes do not."""
    for _ in range(10):
        now[0] += QUIET_S / 2
        new, ended = failures.record_failure("OOM"), failures.record_success()
        assert (new, ended) == (now[0] == QUIET_S / 2, False)


def test_it_ends_once_after_a_quiet_time(failures, now):
    failures.record_failure("OOM")
    now[0] = QUIET_S - 0.1
    assert not failures.record_success()
    failures.record_failure("READONLY")
    now[0] = QUIET_S + 1
    assert not failures.record_success()
    now[0] = 2 * QUIET_S
    assert [failures.record_success() for _ in range(3)] == [True, False, False]
    assert failures.record_failure("OOM")


def test_without_a_failure_nothing_ends(failures):
    assert not failures.record_success()
