"""The values around a scorer: invalid tasks are refused, and Cancel stops work."""

import numpy as np
import pytest

from presift.core.errors import DeadlineExceeded, InvalidRequest
from presift.core.policies import SpecPc
from presift.draft.scorer import Cancel, Cancelled, ScoreTask, check_heads
from presift.rpc.deadline import Deadline

IDS = np.arange(10, dtype=np.uint32)


def test_a_task_without_tokens_or_with_a_window_beyond_them_is_refused():
    with pytest.raises(InvalidRequest, match="token_ids"):
        ScoreTask(IDS[:0])
    with pytest.raises(InvalidRequest, match=r"spec_pc\.window is 11"):
        ScoreTask(IDS, SpecPc(capacity=11, window=11))
    assert ScoreTask(IDS, SpecPc(capacity=10, window=10)).prompt_tokens == 10


@pytest.mark.parametrize(("rows", "wanted", "generated"), [(1, 0, 0), (1, 5, 5), (4, 0, 3), (4, 3, 3), (4, 5, 5)])
def test_the_policy_needs_one_token_less_than_it_names(rows, wanted, generated):
    assert ScoreTask(IDS, SpecPc(capacity=5, window=2, lookahead_tokens=rows), wanted).generated_tokens == generated


def test_cancel_raises_until_the_end():
    cancel = Cancel(Deadline.within(60.0))
    cancel.check()
    cancel.cancel()
    for _ in range(2):
        with pytest.raises(Cancelled):
            cancel.check()
    with pytest.raises(DeadlineExceeded):
        Cancel(Deadline.within(0.0)).check()


def test_the_last_layer_is_the_last_that_can_be_the_first():
    check_heads(SpecPc(capacity=64, start_layer=3), 4, has_profile=True)
    with pytest.raises(InvalidRequest, match="must be < 4"):
        check_heads(SpecPc(capacity=64, start_layer=4), 4, has_profile=True)
