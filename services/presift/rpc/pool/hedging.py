"""Hedging: a slow call is sent to a second replica; the first answer wins and the other call is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Call = Callable[[], Coroutine[Any, Any, T]]


async def hedged(call: Call[T], again: Call[T], after_s: float) -> tuple[T, bool]:
    """The first answer, and whether `again` gave it. `again` starts if `call` has not ended after `after_s` seconds.

    Raises what `call` raised if neither answers.
    """
    legs = [asyncio.create_task(call())]
    try:
        done, _ = await asyncio.wait(legs, timeout=after_s)
        if not done:
            legs.append(asyncio.create_task(again()))
        winner = await _winner(legs)
        return winner.result(), winner is not legs[0]
    finally:
        for leg in legs:
            leg.cancel()
        await asyncio.gather(*legs, return_exceptions=True)


async def _winner(legs: list[asyncio.Task[T]]) -> asyncio.Task[T]:
    """The first task that succeeds, or the first in the list if none does."""
    pending = set(legs)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for leg in done:
            if not leg.cancelled() and leg.exception() is None:
                return leg
    return legs[0]
