"""What routing one request costs: the states of 16 replicas and AUTO's choice among them, all learned and warm.

A new array each time, as token ids come over the wire: no block of it is hashed yet. "KV" needs compressing, "time" has
a `max_ttft_ms` that no capacity meets, so that AUTO tries them all. Prints a table and one JSON line.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from presift.core.generation import FinishReason
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecPc
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.domain.request import Budget, TokenizedPrompt
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.observation import AnswerObservation
from presift.orchestrator.estimation.perf_model import SEEDS
from presift.orchestrator.routing.choice import Defaults, Reason, RoutingInputs
from presift.orchestrator.routing.cost_model import TokenWork
from presift.orchestrator.routing.decision import Decision, Plan
from presift.orchestrator.routing.replica_choice import choose_among

REPLICAS, ROUNDS = [f"target-{number}" for number in range(16)], 300
TARGET, DRAFT = (ModelInfo(name, "r1", "f", 131_072, 28, 2, 150_000) for name in ("target", "draft"))
DEFAULTS = Defaults(SpecPc(1024), compress_above_tokens=0)
BUDGETS = {"none": Budget(), "KV": Budget(max_kv_tokens=800), "time": Budget(max_kv_tokens=800, max_ttft_ms=1)}


def answer(estimator: CostEstimator, ids: np.ndarray, replica: str) -> None:
    """As if this replica had read the prompt at the seeds' speed."""
    tokens = int(ids.size)
    ttft_ms = SEEDS["target"].ms(TokenWork(tokens))
    usage = Usage(tokens, 0, 9, FinishReason.LENGTH, tokens, ttft_ms=ttft_ms, replica=replica)
    decision = Decision(Route.FULL, Reason.REQUESTED, "", tokens, tokens, tokens, 0, TARGET, 1.0)
    plan = Plan(decision, ids, np.ones(tokens, dtype=np.bool_), TokenizedPrompt(ids, ()))
    estimator.observe(AnswerObservation(plan, usage, ttft_ms, ttft_ms + 400.0, was_uncontended=True))


def warmed(tokens: int) -> tuple[CostEstimator, np.ndarray]:
    """Every replica has learned its costs and read a beginning of the prompt, the last one all of it."""
    estimator, ids = (
        CostEstimator(prefills=True),
        np.random.default_rng(0).integers(0, 150_000, tokens, dtype=np.uint32),
    )
    for number, replica in enumerate(REPLICAS, 1):
        for length in range(200, 6400, 200):
            answer(estimator, np.full(length, number, dtype=np.uint32), replica)
        answer(estimator, ids[: tokens * number // len(REPLICAS)].copy(), replica)
    return estimator, ids


def route_once(estimator: CostEstimator, ids: np.ndarray, budget: Budget) -> None:
    states = {each: estimator.state(ids, TARGET, DRAFT, replica=each) for each in REPLICAS}
    inputs = RoutingInputs(int(ids.size), 32, 32, 256, 131_072, frozenset(Route), DEFAULTS, budget=budget)
    choose_among(inputs, states)


def timed(estimator: CostEstimator, ids: np.ndarray, budget: Budget) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        fresh = ids.copy()
        started = time.perf_counter()
        route_once(estimator, fresh, budget)
        times.append((time.perf_counter() - started) * 1000)
    return times


def main() -> None:
    rows = []
    for tokens in (1_000, 8_000, 64_000):
        estimator, warm = warmed(tokens)
        for kind, ids in (("cold", warm + 1), ("warm", warm)):
            for name, budget in BUDGETS.items():
                cuts = statistics.quantiles(timed(estimator, ids, budget), n=100)
                told = {"p50_ms": round(cuts[49], 3), "p99_ms": round(cuts[98], 3)}
                rows.append({"tokens": tokens, "prefix": kind, "budget": name} | told)
    table = Table("tokens", "prefix", "budget", "p50 ms", "p99 ms", title=f"routing at {len(REPLICAS)} replicas")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    print(json.dumps({"bench": "routing", "cpu": platform.processor(), "load": os.getloadavg()[0], "rows": rows}))


if __name__ == "__main__":
    main()
