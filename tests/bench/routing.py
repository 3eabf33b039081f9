"""What routing one request costs: the outlook of 16 replicas and AUTO's choice, with everything learnt and all warm.

Per prompt length and warmth: the expected prefix at every replica, then one choice on the warmest. Prints a table and
one JSON line. With a `max_ttft_ms` that no capacity meets, AUTO tries them all: its worst case.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from presift.core.plan import Route
from presift.core.policies import SpecPc
from presift.orchestrator.choices import Defaults, Facts
from presift.orchestrator.costs import Outlook, Reading
from presift.orchestrator.prefixes import Prefixes
from presift.orchestrator.request import Budget, KvOptions
from presift.orchestrator.routing import choose
from presift.orchestrator.speeds import SEEDS, SpeedBook

REPLICAS, ROUNDS = [f"target-{number}" for number in range(16)], 200
DEFAULTS = Defaults(SpecPc(1024))
BUDGETS = {"none": Budget(), "KV": Budget(max_kv_tokens=800), "time": Budget(max_kv_tokens=800, max_ttft_ms=1)}


def learnt() -> SpeedBook:
    book = SpeedBook()
    for stage, seed in SEEDS.items():
        for model in REPLICAS:
            for tokens in range(100, 6500, 100):
                book.observe(stage, model, Reading(tokens), seed.ms(Reading(tokens)))
    return book


def route_once(prefixes: Prefixes, book: SpeedBook, ids: np.ndarray, budget: Budget) -> None:
    chain = prefixes.chain(ids)
    cached = {replica: prefixes.expected(replica, chain) for replica in REPLICAS}
    warmest = max(REPLICAS, key=lambda replica: cached[replica])
    outlook = Outlook(book.speeds(warmest, warmest), cached_tokens=cached[warmest], reads_beside=True)
    facts = Facts(int(ids.size), 32, 32, 256, 131_072, frozenset(Route), outlook=outlook)
    choose(None, budget, KvOptions(), facts, DEFAULTS)


def timed(work: Callable[[], None]) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return times


def main() -> None:
    prefixes, book, rows = Prefixes(), learnt(), []
    for tokens in (5_000, 10_000, 32_000):
        warm = np.arange(tokens, dtype=np.uint32)
        cold = warm + 100_000
        prefixes.remember(REPLICAS[3], prefixes.chain(warm))
        for kind, ids in (("cold", cold), ("warm at one", warm)):
            for name, budget in BUDGETS.items():
                times = timed(lambda ids=ids, budget=budget: route_once(prefixes, book, ids, budget))  # type: ignore[misc]
                p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[18]
                rows.append(
                    {"tokens": tokens, "prefix": kind, "budget": name, "p50_ms": round(p50, 3), "p95_ms": round(p95, 3)}
                )
    table = Table("tokens", "prefix", "budget", "p50 ms", "p95 ms", title=f"routing at {len(REPLICAS)} replicas")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    print(json.dumps({"bench": "routing", "cpu": platform.processor(), "load": os.getloadavg()[0], "rows": rows}))


if __name__ == "__main__":
    main()
