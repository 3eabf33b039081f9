"""Places in the engine: counted, bounded, given back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from presift.core.errors import Overloaded
from presift.target.admission import Admission


def test_as_many_enter_as_may_run_and_wait() -> None:
    admission = Admission(max_running=2, max_waiting=1)
    with ExitStack() as inside:
        for _ in range(3):
            inside.enter_context(admission.admit())
        with pytest.raises(Overloaded) as refusal, admission.admit():
            pass
        assert (refusal.value.value, refusal.value.limit) == (1, 1)
        assert 0.1 <= refusal.value.retry_after_s <= 30.0
    with admission.admit():
        pass


def test_no_waiting_at_all() -> None:
    admission = Admission(max_running=1, max_waiting=0)
    with admission.admit(), pytest.raises(Overloaded), admission.admit():
        pass


def test_a_failed_request_gives_its_place_back() -> None:
    admission = Admission(max_running=1, max_waiting=0)
    with pytest.raises(RuntimeError), admission.admit():
        raise RuntimeError
    with admission.admit():
        pass
