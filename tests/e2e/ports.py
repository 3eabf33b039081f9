"""Ports for what tests start, where the service cannot take any free one by itself."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack

# Below the ports that the system gives out (32768 and up), which SGLang takes for NCCL, and below SGLang's own 30000.
_FIRST, _LAST, _PER_WORKER = 20_000, 29_999, 500


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that are free at every address.

    Each worker of pytest-xdist has a range of its own, and ports are drawn at random, so
    another run on this machine rarely meets them."""
    least, most = worker_range(os.environ.get("PYTEST_XDIST_WORKER", ""))
    for _ in range(200):
        first = random.SystemRandom().randrange(least, most - count + 1)
        if _are_free(range(first, first + count)):
            return first
    raise AssertionError("no ports")


def worker_range(worker: str) -> tuple[int, int]:
    """The first port of the worker ("gw0", "gw1", ...; empty: all of them), and the first that is not its own."""
    if not worker:
        return _FIRST, _LAST + 1
    least = _FIRST + int(worker.removeprefix("gw")) * _PER_WORKER % (_LAST + 1 - _FIRST)
    return least, least + _PER_WORKER


def _are_free(ports: range) -> bool:
    with ExitStack() as held:
        for port in ports:
            probe = held.enter_context(socket.socket())
            try:
                # At all addresses: it meets those who listen at one of them, too.
                probe.bind(("", port))
            except OSError:
                return False
    return True
