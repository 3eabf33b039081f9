"""Counts the tokens that a tenant has used within a minute, in this process or in a Redis that orchestrators share.

The `limits` library counts, with a sliding window of two counters: one tenant costs two small keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from presift.cache.redis_client import RedisClient

T = TypeVar("T")

WINDOW_S = 60.0

_PREFIX = "presift:rate"
_MOVE = "redis.call('set', KEYS[1], 0, 'PX', 1000) return redis.call('rename', KEYS[1], KEYS[2])"


class TokenRateLimit:
    """Without `redis` it counts in this process. Raises CacheUnavailable if Redis does not answer in `timeout_s`."""

    def __init__(self, redis: RedisClient | None = None, timeout_s: float = 0.25) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage() if redis is None else _storage(redis))

    async def take(self, tenant: str, tokens: int, limit: int) -> int | None:
        """Take tokens: None if they were taken, else how many are left. `limit`: tokens per minute."""
        item = RateLimitItemPerMinute(limit)

        async def hit() -> int | None:
            if await self._limiter.hit(item, tenant, cost=tokens):
                return None
            return (await self._limiter.get_window_stats(item, tenant)).remaining

        return await self._run(hit)

    async def give_back(self, tenant: str, tokens: int, limit: int) -> None:
        """Return unused tokens within the window in which they were taken."""
        item = RateLimitItemPerMinute(limit)
        await self._run(lambda: self._limiter.hit(item, tenant, cost=-tokens))

    async def check(self, timeout_s: float) -> None:
        """Take and return tokens of a tenant that does not exist. Raises CacheUnavailable."""
        if self._redis is None:
            return
        checked, tenant = TokenRateLimit(self._redis, timeout_s), f"check:{secrets.token_hex(16)}"
        for _ in range(2):  # the second time nothing is left, and the library's other script runs
            await checked.take(tenant, 1, 1)
        await checked.give_back(tenant, 1, 1)
        # What the library's script does only when a minute has passed.
        keys = (f"{{{_PREFIX}:{tenant}}}", f"{{{_PREFIX}:{tenant}}}/-1")
        await self._redis.execute("EVAL", _MOVE, 2, *keys, timeout_s=timeout_s)

    async def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call() if self._redis is None else await self._redis.attempt(call, self._timeout_s)


def _storage(redis: RedisClient) -> RedisStorage:
    # The URL only selects the client library; the address is the pool's.
    pool: dict[str, object] = {"connection_pool": redis.pool}
    return RedisStorage("async+redis://", implementation="redispy", key_prefix=_PREFIX, **pool)  # type: ignore[arg-type]
