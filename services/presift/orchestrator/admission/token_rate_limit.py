"""Rates: how many tokens a tenant has used within a minute, here or in a Redis that all orchestrators share.

The counting is the library's (`limits`): a sliding window of two counters, so that one tenant costs two small keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from presift.cache.redis_client import RedisClient

T = TypeVar("T")

WINDOW_S = 60.0


class TokenRateLimit:
    """`link` None counts in this process. Raises Unavailable where the Redis does not answer within `timeout_s`."""

    def __init__(self, link: RedisClient | None = None, timeout_s: float = 0.25) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage() if link is None else _shared(link))

    async def take(self, tenant: str, tokens: int, limit: int) -> int | None:
        """None where the tenant may use so many now, and has; else how many are left. `limit`: tokens per minute."""
        item = RateLimitItemPerMinute(limit)

        async def ask() -> int | None:
            if await self._limiter.hit(item, tenant, cost=tokens):
                return None
            return (await self._limiter.get_window_stats(item, tenant)).remaining

        return await self._asked(ask)

    async def give_back(self, tenant: str, tokens: int, limit: int) -> None:
        """What was taken and not used, within the window in which it was taken."""
        item = RateLimitItemPerMinute(limit)
        await self._asked(lambda: self._limiter.hit(item, tenant, cost=-tokens))

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call() if self._link is None else await self._link.attempt(call, self._timeout_s)


def _shared(link: RedisClient) -> RedisStorage:
    # The address is the pool's; the URL here only says which client is used.
    pool: dict[str, object] = {"connection_pool": link.pool}
    return RedisStorage("async+redis://", implementation="redispy", key_prefix="presift:rate", **pool)  # type: ignore[arg-type]
