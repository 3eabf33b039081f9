"""Leases: how many calls of a tenant are under way, here or in a Redis that all orchestrators share.

There each call is a member of the tenant's sorted set, which lapses by itself when its orchestrator dies. The server's
clock alone counts.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import defaultdict
from contextlib import suppress
from typing import Protocol

from presift.cache.redis_client import CacheUnavailable, RedisClient

# Claim, unless ARGV[3] others are there; a lease that is held already is prolonged, also where nobody may claim (0).
_CLAIM = """
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('zremrangebyscore', KEYS[1], '-inf', now)
if not redis.call('zscore', KEYS[1], ARGV[1]) and redis.call('zcard', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('zadd', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('pexpire', KEYS[1], ARGV[2])
return 1
"""
_NOBODY = 0


class ConcurrencyLimit(Protocol):
    """Raises CacheUnavailable where nobody can tell."""

    @property
    def held(self) -> int:
        """How many this process holds."""
        ...

    async def claim(self, tenant: str, lease: str, limit: int) -> bool:
        """Whether the call named `lease` may run beside at most `limit` - 1 others of its tenant."""
        ...

    async def release(self, tenant: str, lease: str) -> None:
        """The call has ended; of one that was never claimed, nothing."""
        ...

    async def aclose(self) -> None: ...


class MemoryConcurrencyLimit:
    """For one orchestrator."""

    def __init__(self) -> None:
        self._held: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def held(self) -> int:
        return sum(map(len, self._held.values()))

    async def claim(self, tenant: str, lease: str, limit: int) -> bool:
        if len(self._held[tenant]) >= limit:
            return False
        self._held[tenant].add(lease)
        return True

    async def release(self, tenant: str, lease: str) -> None:
        self._held[tenant].discard(lease)
        if not self._held[tenant]:
            del self._held[tenant]

    async def aclose(self) -> None:
        self._held.clear()


class RedisConcurrencyLimit:
    """Over `link`, which is closed by its owner. A lease lapses after `ttl_s` unless it is prolonged, as all are here
    while they are held."""

    def __init__(self, link: RedisClient, timeout_s: float = 0.25, ttl_s: float = 30.0) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._held: dict[str, str] = {}
        self._prolonging: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        return len(self._held)

    async def claim(self, tenant: str, lease: str, limit: int) -> bool:
        if not await self._run(tenant, lease, limit):
            return False
        self._held[lease] = tenant
        if self._prolonging is None:
            # In a context of its own: it must not go on in the trace of this request.
            self._prolonging = asyncio.create_task(self._prolong(), name="leases", context=contextvars.Context())
        return True

    async def release(self, tenant: str, lease: str) -> None:
        self._held.pop(lease, None)
        if not self._held and self._prolonging is not None:
            self._prolonging.cancel()
            self._prolonging = None  # it may not have heard yet when the next claim comes
        await self._link.execute("ZREM", _key(tenant), lease, timeout_s=self._timeout_s)

    async def aclose(self) -> None:
        """Prolong no more."""
        if self._prolonging is not None:
            self._prolonging.cancel()
            await asyncio.wait((self._prolonging,))

    async def _prolong(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            for lease, tenant in list(self._held.items()):
                with suppress(CacheUnavailable):  # the next round may do
                    await self._run(tenant, lease, _NOBODY)

    async def _run(self, tenant: str, lease: str, limit: int) -> bool:
        arguments = (_key(tenant), lease, round(self._ttl_s * 1000), limit)
        return await self._link.execute("EVAL", _CLAIM, 1, *arguments, timeout_s=self._timeout_s) == 1


def _key(tenant: str) -> str:
    return f"presift:running:{tenant}"
