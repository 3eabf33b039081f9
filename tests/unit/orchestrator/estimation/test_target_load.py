"""The load that targets report, for as long as it is valid."""

import pytest

from presift.core.generation import EngineLoad
from presift.orchestrator.estimation.target_load import MAX_AGE_S, TargetLoads
from presift.orchestrator.routing.cost_model import (
    CostCurve,
    RouteWork,
    RunningAnswer,
    StageCosts,
    SystemState,
    TokenWork,
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loads(clock):
    return TargetLoads(clock)


def test_a_report_is_valid_for_some_seconds(loads, clock):
    assert loads.free_kv_tokens("a") is None and loads.other_wait_ms("a", 0) == 0
    loads.record("a", EngineLoad(2, 5, 700), 40.0)
    assert (loads.free_kv_tokens("a"), loads.free_kv_tokens("b")) == (700, None)
    clock.now += MAX_AGE_S
    assert loads.free_kv_tokens("a") == 700
    clock.now += 0.1
    assert loads.free_kv_tokens("a") is None and loads.other_wait_ms("a", 0) == 0


def test_waiting_requests_of_other_orchestrators(loads):
    for took_ms in (10.0, 40.0, 900.0):
        loads.record("a", EngineLoad(2, 5, 700), took_ms)
    assert [loads.other_wait_ms("a", own) for own in (0, 3, 5, 9)] == [200, 80, 0, 0]


def test_a_request_that_waited_is_no_measure_of_reading(loads):
    loads.record("a", EngineLoad(2, 5, 700), None)
    assert loads.other_wait_ms("a", 0) == 0 and loads.free_kv_tokens("a") == 700
    loads.record("a", EngineLoad(2, 5, 700), 40.0)
    for _ in range(20):
        loads.record("a", EngineLoad(2, 5, 700), None)
    assert loads.other_wait_ms("a", 0) == 200


def test_a_target_that_reports_nothing_is_unknown(loads):
    loads.record("a", None, 40.0)
    assert loads.free_kv_tokens("a") is None and loads.other_wait_ms("a", 0) == 0


def test_memory_is_bounded_by_time(loads, clock):
    for number in range(500):
        clock.now += 1.0
        loads.record(f"replica {number}", EngineLoad(1, 0, 5), 1.0)
    assert len(loads._reports) == MAX_AGE_S + 1


def test_running_answers(loads):
    with loads.answering(80.0, 500), pytest.raises(RuntimeError), loads.answering(80.0, 500):
        assert loads.answers() == (RunningAnswer(40.0, 500),) * 2
        raise RuntimeError
    assert loads.answers() == ()


# 10 ms a token to read.
STATE = SystemState(
    StageCosts(target=CostCurve(0.0, 10.0, 0.0)), answers=(RunningAnswer(300.0, 60), RunningAnswer(100.0, 50))
)


@pytest.mark.parametrize(
    ("free", "needed", "waits"),
    [(None, 999, 0), (100, 100, 0), (100, 101, 100), (100, 150, 100), (100, 151, 300), (0, 9999, 300)],
)
def test_the_wait_for_slots_by_hand(free, needed, waits):
    state = SystemState(answers=STATE.answers, free_kv_tokens=free)
    assert state.kv_wait_ms(needed) == waits
    assert SystemState(free_kv_tokens=free).kv_wait_ms(needed) == 0  # their holders are unknown


def test_a_prompt_and_its_answer_need_slots():
    work = RouteWork(TokenWork(80, 10), 90, 90)
    state = SystemState(STATE.costs, answers=STATE.answers, free_kv_tokens=100)
    assert [state.forecast(work, answer).ttft_ms for answer in (10, 11, 61)] == [800, 900, 1100]
    assert state.forecast(work, 11).least_ms == state.forecast(work, 11).target_ms == 900
    # While KV is selected, the entry takes slots beside all tokens read.
    assert RouteWork(TokenWork(80, 10), 90, 30, selection=TokenWork(5, 90)).slots == 120
