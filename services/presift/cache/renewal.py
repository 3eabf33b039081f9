"""Short leases, renewed while their holder lives, so that a holder that dies blocks the others for seconds only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from presift.cache.redis_client import CacheUnavailable
from presift.rpc.tasks import start_detached

K = TypeVar("K", bound=Hashable)


class HeldLeases(Generic[K]):
    """The leases that this process holds. Calls `renew` for each of them every `every_s` seconds."""

    def __init__(self, renew: Callable[[K], Awaitable[object]], every_s: float) -> None:
        self._renew = renew
        self._every_s = every_s
        self._held: dict[K, None] = {}
        self._renewing: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def add(self, lease: K) -> None:
        self._held[lease] = None
        if self._renewing is None:
            self._renewing = start_detached(self._run(), "renew leases")

    def discard(self, lease: K) -> None:
        """Stop renewing a lease."""
        self._held.pop(lease, None)
        if not self._held and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None  # the next claim may come before the task has ended

    async def aclose(self) -> None:
        """Stop renewing all leases."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            for lease in list(self._held):
                with suppress(CacheUnavailable):  # the next round may succeed
                    await self._renew(lease)
