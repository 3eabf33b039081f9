"""A time limit on somebody else: the time in which our own event loop was busy is not theirs.

A burst of requests keeps the loop from looking at its sockets for longer than a cache may take. A plain timeout then
fires although the answer has been there all the while, and every process computes what one has computed. So the limit
is told in ticks: a late one counts as one, and between two of them everything that waits gets its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# However late we are: nobody waits longer for a server that does not answer.
OWN_DELAY_LIMIT_S = 2.0
_TICKS = 10


@asynccontextmanager
async def loop_aware_timeout(timeout_s: float) -> AsyncIterator[None]:
    """As asyncio.timeout, but of the time that the loop had for it. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    latest_s, tick_s = loop.time() + timeout_s + OWN_DELAY_LIMIT_S, timeout_s / _TICKS
    async with asyncio.timeout(None) as scope:
        timer = loop.call_later(tick_s, lambda: tick(_TICKS - 1))

        def tick(left: int) -> None:
            nonlocal timer
            if left and loop.time() < latest_s:
                timer = loop.call_later(tick_s, tick, left - 1)
            else:
                scope.reschedule(loop.time())

        try:
            yield
        finally:
            timer.cancel()
