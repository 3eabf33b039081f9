"""The deadline and its split."""

import pytest

from presift.core.errors import DeadlineExceeded
from presift.orchestrator.deadline import Deadline, draft_share_s


def test_no_deadline_never_passes():
    assert Deadline.within(None).left_s() is None


def test_what_is_left_shrinks_and_then_nothing_goes_on():
    assert 0.0 < Deadline.within(50.0).left_s() <= 50.0
    for passed in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            Deadline.within(passed).left_s()


@pytest.mark.parametrize(
    ("target_s", "share_s"),
    [
        (None, 50.0),  # nothing is known: half
        (16.0, 80.0),  # what the target needs, and a quarter more, is kept for it
        (0.0, 90.0),  # a prediction of nothing is not believed
        (1.0, 90.0),
        (64.0, 25.0),  # where full could hardly be read in time, compressing is still tried
        (1e9, 25.0),
    ],
)
def test_the_draft_gets_what_the_target_does_not_need(target_s, share_s):
    assert draft_share_s(100.0, target_s) == pytest.approx(share_s)
