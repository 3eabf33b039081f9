"""The deadline and its split."""

import pytest

from presift.core.errors import DeadlineExceeded
from presift.orchestrator.planning.draft_stage import draft_share_s
from presift.orchestrator.routing.cost_model import CostCurve, QueuedWork, StageCosts, SystemState
from presift.orchestrator.routing.forecast import answer_seconds
from presift.rpc.deadline import NO_DEADLINE, Deadline

from ...builders import routing_inputs


def test_no_deadline_never_passes():
    assert Deadline.within(None).remaining_s is None and NO_DEADLINE.remaining_s is None


def test_the_time_left_shrinks_until_the_deadline_is_exceeded():
    Deadline.within(50.0).check()
    for passed in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            Deadline.within(passed).check()
        assert Deadline.within(passed).remaining_s == 0.0
    assert 0.0 < Deadline.within(50.0).remaining_s <= 50.0


@pytest.mark.parametrize(
    ("own_s", "most_s", "left_s"),
    [(None, None, None), (5.0, None, 5.0), (None, 9.0, 9.0), (5.0, 9.0, 5.0), (9.0, 5.0, 5.0)],
)
def test_a_limit_shortens_a_deadline_and_never_extends_it(own_s, most_s, left_s):
    found = Deadline.within(own_s).at_most(most_s).remaining_s
    assert found == left_s if left_s is None else left_s - 1 < found <= left_s


@pytest.mark.parametrize(
    ("target_s", "share_s"),
    [
        (None, 50.0),  # unknown: half
        (20.0, 70.0),  # the target keeps what it needs, and half as much again
        (0.0, 75.0),  # a prediction of no time is not trusted
        (1.0, 75.0),
        (64.0, 25.0),  # even if full would hardly be in time, compressing is tried
        (1e9, 25.0),
    ],
)
def test_the_draft_gets_what_the_target_does_not_need(target_s, share_s):
    assert draft_share_s(100.0, target_s) == pytest.approx(share_s)


@pytest.mark.parametrize(
    ("observations", "cached_tokens", "queue_ms", "needed_s"),
    [(0, 0, 0, None), (5, 0, 0, 1.1), (5, 900, 0, 0.2), (5, 0, 3000, 4.1)],
)
def test_the_targets_time_for_the_whole_prompt_and_its_answer(observations, cached_tokens, queue_ms, needed_s):
    """A millisecond a prompt token, ten a token of the answer; unknown until something was observed."""
    costs = StageCosts(target=CostCurve(0.0, 1.0, 0.0, observations=observations), decoding=CostCurve(10.0, 0.0, 0.0))
    state = SystemState(costs, QueuedWork(target_ms=queue_ms, spent_ms=77.0), cached_tokens)
    assert answer_seconds(routing_inputs(reserved_tokens=10, state=state)) == (
        None if needed_s is None else pytest.approx(needed_s)
    )


@pytest.mark.parametrize(("left_s", "is_due"), [(None, False), (60.0, False), (0.01, True), (-1.0, True)])
def test_a_deadline_is_due_a_moment_early(left_s, is_due):
    assert Deadline.within(left_s).is_due is is_due
