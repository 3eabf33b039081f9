"""A timeout for a server's answer that does not count the time in which this process's event loop was busy.

A burst of requests can keep the loop from reading its sockets for longer than a cache may take. A plain timeout would
then fire although the answer has arrived, and every process would compute what one has computed. So the timeout counts
ticks: a late tick counts as one, and between two ticks the loop handles everything that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# The longest extension by delays of the loop, for a server that does not answer.
LOOP_DELAY_LIMIT_S = 2.0
_TICKS = 10


@asynccontextmanager
async def loop_aware_timeout(timeout_s: float) -> AsyncIterator[None]:
    """As asyncio.timeout, but counts only time in which the loop was free. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    latest_s, tick_s = loop.time() + timeout_s + LOOP_DELAY_LIMIT_S, timeout_s / _TICKS
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
