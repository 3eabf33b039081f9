"""The moving average of service times, and the retry hint that follows from it."""

import pytest

from presift.core.service_time import ServiceTime


def test_it_approaches_what_it_observes():
    time = ServiceTime()
    assert time.typical_s == 1.0
    time.observe(2.0)
    assert time.typical_s == pytest.approx(1.2)
    for _ in range(50):
        time.observe(3.0)
    assert time.typical_s == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize(
    ("waiting", "parallel", "retry_after_s"), [(1, 1, 1.0), (8, 4, 2.0), (1, 64, 0.1), (0, 1, 0.1), (1000, 1, 30.0)]
)
def test_places_become_free_at_the_rate_of_finished_requests(waiting, parallel, retry_after_s):
    assert ServiceTime().retry_after_s(waiting, parallel) == retry_after_s
