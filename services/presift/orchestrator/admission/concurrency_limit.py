"""Counts the running requests of a tenant, in this process or in a Redis that all orchestrators share.

In Redis each request is a member of its tenant's sorted set: a lease, which expires if its orchestrator dies. Only the
Redis server's clock counts.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import Protocol

from presift.cache.redis_client import RedisClient
from presift.cache.renewal import HeldLeases

# Claims unless ARGV[3] other leases are held. A lease that is held already is renewed, even if the limit is 0.
_CLAIM = """
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('zremrangebyscore', KEYS[1], '-inf', now)
if not redis.call('zscore', KEYS[1], ARGV[1]) and redis.call('zcard', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('zadd', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('pexpire', KEYS[1], ARGV[2])
return 1
"""
# A claim with this limit only renews.
_RENEW_ONLY = 0


class ConcurrencyLimit(Protocol):
    """Raises CacheUnavailable if the count is unavailable."""

    @property
    def held(self) -> int:
        """The number of requests that this process has claimed."""
        ...

    async def claim(self, tenant: str, request_id: str, limit: int) -> bool:
        """Claim a place for the request; False if `limit` requests of the tenant run already."""
        ...

    async def release(self, tenant: str, request_id: str) -> None:
        """The request has ended. Does nothing for one that was never claimed."""
        ...

    async def aclose(self) -> None: ...


class MemoryConcurrencyLimit:
    """For one orchestrator."""

    def __init__(self) -> None:
        self._held: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def held(self) -> int:
        return sum(map(len, self._held.values()))

    async def claim(self, tenant: str, request_id: str, limit: int) -> bool:
        if len(self._held[tenant]) >= limit:
            return False
        self._held[tenant].add(request_id)
        return True

    async def release(self, tenant: str, request_id: str) -> None:
        self._held[tenant].discard(request_id)
        if not self._held[tenant]:
            del self._held[tenant]

    async def aclose(self) -> None:
        self._held.clear()


class RedisConcurrencyLimit:
    """Over `redis`, which its owner closes. A lease expires after `ttl_s`; those held here are renewed."""

    def __init__(self, redis: RedisClient, timeout_s: float = 0.25, ttl_s: float = 30.0) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._leases: HeldLeases[tuple[str, str]] = HeldLeases(self._renew, ttl_s / 3)

    @property
    def held(self) -> int:
        return len(self._leases)

    async def claim(self, tenant: str, request_id: str, limit: int) -> bool:
        if not await self._run(tenant, request_id, limit):
            return False
        self._leases.add((tenant, request_id))
        return True

    async def release(self, tenant: str, request_id: str) -> None:
        self._leases.discard((tenant, request_id))
        await self._redis.execute("ZREM", _key(tenant), request_id, timeout_s=self._timeout_s)

    async def check(self, timeout_s: float) -> None:
        """Claim and release for a tenant that does not exist. Raises CacheUnavailable."""
        key, request_id = _key(f"check:{secrets.token_hex(16)}"), secrets.token_hex(8)
        await self._redis.execute("EVAL", _CLAIM, 1, key, request_id, 1000, 1, timeout_s=timeout_s)
        await self._redis.execute("ZREM", key, request_id, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Stop renewing."""
        await self._leases.aclose()

    async def _renew(self, lease: tuple[str, str]) -> None:
        await self._run(*lease, _RENEW_ONLY)

    async def _run(self, tenant: str, request_id: str, limit: int) -> bool:
        arguments = (_key(tenant), request_id, round(self._ttl_s * 1000), limit)
        return await self._redis.execute("EVAL", _CLAIM, 1, *arguments, timeout_s=self._timeout_s) == 1


def _key(tenant: str) -> str:
    return f"presift:running:{tenant}"
