"""Queueing: how long a request waits for one of several equal servers. Pure.

Erlang's C formula (A. K. Erlang, 1917) is exact for Poisson arrivals and exponential service times. Real service times
vary less, because prompts of one length take about the same time. Allen and Cunneen's correction multiplies the wait by
(1 + scv) / 2, where scv is the variance of the service time divided by its squared mean. For a single server that is
the exact result of Pollaczek and Khinchine.
"""

from __future__ import annotations

import math

# The search ends here. A load that needs more servers has a wrong unit.
MAX_SERVERS = 100_000


def erlang_c(servers: int, offered: float) -> float:
    """The probability that an arrival waits. `offered` is arrivals times service time, in servers, below `servers`."""
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = offered * blocked / (busy + offered * blocked)
    return blocked / (1.0 - offered / servers * (1.0 - blocked))


def mean_wait_s(servers: int, rate: float, mean_s: float, scv: float = 0.0) -> float:
    """The mean wait before service begins, in seconds; infinite if more work arrives than can be served.

    `rate`: arrivals per second at all servers together; `mean_s` and `scv`: of the service time.
    """
    offered = rate * mean_s
    if offered >= servers:
        return math.inf
    return erlang_c(servers, offered) * mean_s / (servers - offered) * (1.0 + scv) / 2.0


def servers_for(offered: float, utilisation: float) -> int:
    """The fewest servers, at least one, whose utilisation is at most `utilisation`."""
    # A rounding error must not add a server.
    return max(1, math.ceil(offered / utilisation - 1e-9))


def spread(values: list[tuple[float, float]]) -> tuple[float, float]:
    """(mean, scv) of (value, weight) pairs, whose weights need not sum to 1; (0, 0) if there are none."""
    total = sum(weight for _, weight in values)
    mean = sum(value * weight for value, weight in values) / total if total else 0.0
    if not mean:
        return 0.0, 0.0
    second = sum((value / mean) ** 2 * weight for value, weight in values) / total
    return mean, max(0.0, second - 1.0)
