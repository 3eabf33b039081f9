"""The formulas against simulations, seeded so that every run has the same numbers."""

import heapq

import numpy as np
import pytest

from presift.cli.planning.queueing import mean_wait_s, spread
from presift.cli.planning.sizing import load_per_target
from presift.cli.planning.workload import Length, LengthWork, Workload
from presift.core.plan import Route
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts

MIX = [(0.2, 0.5), (1.0, 0.3), (4.0, 0.2)]


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.7), (3, 0.7), (8, 0.85)])
def test_waits_for_drafts(servers, load):
    """Poisson arrivals, service times of a mix of lengths, a free draft takes the next prompt."""
    mean_s, scv = spread(MIX)
    rate, random = servers * load / mean_s, np.random.default_rng(7)
    arrivals = np.cumsum(random.exponential(1 / rate, 100_000))
    times = random.choice([value for value, _ in MIX], size=arrivals.size, p=[weight for _, weight in MIX])
    free, waited = [0.0] * servers, 0.0
    for at, takes in zip(arrivals.tolist(), times.tolist(), strict=True):
        begins = max(at, heapq.heappop(free))
        waited += begins - at
        heapq.heappush(free, begins + takes)
    assert waited / arrivals.size == pytest.approx(mean_wait_s(servers, rate, mean_s, scv), rel=0.12)


@pytest.mark.parametrize("rate", [0.5, 2.0, 4.0])
def test_concurrent_answers_of_a_target(rate):
    """Reading prompts comes first; between them each step extends all answers by a token."""
    read_s, answer, step_s, request_s = 0.1, 100, 0.020, 0.0002
    random = np.random.default_rng(11)
    arrivals = np.cumsum(random.exponential(1 / rate, 4_000)).tolist()
    now, next_one, left, weighed = 0.0, 0, [], 0.0
    while next_one < len(arrivals):
        if arrivals[next_one] <= now:
            took, next_one = read_s, next_one + 1
            weighed += len(left) * took
            left.append(answer)
        elif left:
            took = step_s + len(left) * request_s
            weighed += len(left) * took
            left = [each - 1 for each in left if each > 1]
        else:
            took = arrivals[next_one] - now
        now += took
    asked = LengthWork(1000, 1.0, Route.FULL, 0.0, read_s, 1000, 1000, 1000, read_s)
    speeds = StageCosts(target=CostCurve(0, request_s * 1e3, 0), decoding=CostCurve(step_s * 1e3, 0, 0))
    one = load_per_target(1, Workload(rate, (Length(1000, 1.0),), answer), [asked], speeds)
    assert weighed / now == pytest.approx(one.decoding, rel=0.1)
