"""Waiting lines: how long a request waits for one of several equal servers. Pure.

Erlang's C (A. K. Erlang, 1917) is exact for Poisson arrivals and exponential times of service. Real times are less
spread: a prompt of a given length takes about the same each time. Allen and Cunneen's correction scales the wait by
(1 + scv) / 2, where scv is the variance of the service time over its squared mean; for a single server that is
Pollaczek and Khinchine's exact result.
"""

from __future__ import annotations

import math

# A bound for the search, far above what anybody runs: whoever needs more has mistaken a unit.
MOST = 100_000


def erlang_c(servers: int, offered: float) -> float:
    """The probability that an arrival waits. `offered`: servers' worth of work that comes in, below `servers`."""
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = offered * blocked / (busy + offered * blocked)
    return blocked / (1.0 - offered / servers * (1.0 - blocked))


def mean_wait_s(servers: int, rate: float, mean_s: float, scv: float = 0.0) -> float:
    """Seconds before service begins, on average; infinite where more comes than can be served.

    `rate` per second over all servers; `mean_s` and `scv` of the service time.
    """
    offered = rate * mean_s
    if offered >= servers:
        return math.inf
    return erlang_c(servers, offered) * mean_s / (servers - offered) * (1.0 + scv) / 2.0


def servers_for(offered: float, utilisation: float) -> int:
    """The fewest servers of which no more than `utilisation` is used; at least one."""
    # What is over by rounding alone does not count.
    return max(1, math.ceil(offered / utilisation - 1e-9))


def spread(values: list[tuple[float, float]]) -> tuple[float, float]:
    """(mean, scv) of values with their weights, which need not sum to 1; (0, 0) where there are none."""
    total = sum(weight for _, weight in values)
    mean = sum(value * weight for value, weight in values) / total if total else 0.0
    if not mean:
        return 0.0, 0.0
    second = sum((value / mean) ** 2 * weight for value, weight in values) / total
    return mean, max(0.0, second - 1.0)
