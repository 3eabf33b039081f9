"""Trouble: a state begins and ends once, whatever happens in between."""

import pytest

from presift.cache.trouble import QUIET_S, Trouble


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def trouble(now):
    return Trouble(lambda: now[0])


def test_a_reason_is_new_once(trouble):
    assert [trouble.failed("OOM") for _ in range(3)] == [True, False, False]
    assert trouble.failed("NOPERM") and not trouble.failed("OOM")


def test_successes_in_between_end_nothing(trouble, now):
    """On a full server reads succeed and writes do not."""
    for _ in range(10):
        now[0] += QUIET_S / 2
        new, ended = trouble.failed("OOM"), trouble.succeeded()
        assert (new, ended) == (now[0] == QUIET_S / 2, False)


def test_it_ends_once_after_a_quiet_time(trouble, now):
    trouble.failed("OOM")
    now[0] = QUIET_S - 0.1
    assert not trouble.succeeded()
    trouble.failed("READONLY")
    now[0] = QUIET_S + 1
    assert not trouble.succeeded()
    now[0] = 2 * QUIET_S
    assert [trouble.succeeded() for _ in range(3)] == [True, False, False]
    assert trouble.failed("OOM")


def test_without_a_failure_nothing_ends(trouble):
    assert not trouble.succeeded()
