"""Counts the tokens that a tenant has used within a minute, in this process or in a Redis that orchestrators share.

Both use a sliding window of two counters. In Redis the `limits` library counts: one tenant costs two small keys. Its
memory storage lives by the wall clock: when the host's clock is set, quotas would be lost, or last for hours.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from math import floor
from typing import Any, Protocol, TypeVar, cast

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from presift.cache.redis_client import RedisClient

T = TypeVar("T")

WINDOW_S = 60.0

_PREFIX = "presift:rate"
# Returns ARGV[2] tokens that were taken ARGV[3] ms ago to the counter in which they are: KEYS[1] for the window before,
# KEYS[2] for the current one, which lasts ARGV[1] ms and is kept for two windows.
_GIVE_BACK = """
local window, tokens, age = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local left = redis.call('pttl', KEYS[2])
if left <= 0 then return 0 end
if left < window then
  redis.call('rename', KEYS[2], KEYS[1])
  redis.call('set', KEYS[2], 0, 'PX', left + window)
  left = left + window
end
local before = 0
if age > 2 * window - left then
  before = math.min(tokens, tonumber(redis.call('get', KEYS[1]) or 0))
end
if before > 0 then redis.call('incrby', KEYS[1], -before) end
redis.call('incrby', KEYS[2], before - tokens)
return tokens
"""
_MOVE = "redis.call('set', KEYS[1], 0, 'PX', 1000) return redis.call('rename', KEYS[1], KEYS[2])"


class TokenRateLimit(Protocol):
    """Counts the tokens of tenants. Raises CacheUnavailable if the count is unavailable."""

    async def take(self, tenant: str, tokens: int, limit: int) -> int | None:
        """Take tokens: None if they were taken, else how many are left. `limit`: tokens per minute."""

    async def give_back(self, tenant: str, tokens: int, limit: int, age_s: float = 0.0) -> None:
        """Return unused tokens that were taken `age_s` seconds ago, at most a minute.

        They return to the minute of the clock in which they were taken. In the next one they count less and less, so
        that a tenant that returned them to that one would get more than its limit.
        """


class MemoryTokenRateLimit:
    """For one orchestrator, by `clock` (monotonic, in seconds). The tokens of the current minute count in full; those
    of the one before by the share of it in the window."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = 0.0
        self._before: Counter[str] = Counter()
        self._current: Counter[str] = Counter()

    async def take(self, tenant: str, tokens: int, limit: int) -> int | None:
        used = self._used(tenant)
        if used + tokens > limit:
            return max(0, limit - used)
        self._current[tenant] += tokens
        return None

    async def give_back(self, tenant: str, tokens: int, limit: int, age_s: float = 0.0) -> None:
        self._used(tenant)  # begins the current minute
        before = min(tokens, self._before[tenant]) if age_s > self._clock() % WINDOW_S else 0
        self._before[tenant] -= before
        self._current[tenant] -= tokens - before

    def _used(self, tenant: str) -> int:
        minute, since_s = divmod(self._clock(), WINDOW_S)
        if minute != self._minute:
            self._before = self._current if minute == self._minute + 1 else Counter()
            self._current, self._minute = Counter(), minute
        return floor(self._before[tenant] * (1 - since_s / WINDOW_S) + self._current[tenant])


class RedisTokenRateLimit:
    """Over `redis`, which its owner closes. Each call takes at most `timeout_s`."""

    def __init__(self, redis: RedisClient, timeout_s: float = 0.25) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._limiter = SlidingWindowCounterRateLimiter(_Storage(redis))

    async def take(self, tenant: str, tokens: int, limit: int) -> int | None:
        item = RateLimitItemPerMinute(limit)

        async def hit() -> int | None:
            if await self._limiter.hit(item, tenant, cost=tokens):
                return None
            return (await self._limiter.get_window_stats(item, tenant)).remaining

        return await self._run(hit)

    async def give_back(self, tenant: str, tokens: int, limit: int, age_s: float = 0.0) -> None:
        arguments = (round(WINDOW_S * 1000), tokens, round(age_s * 1000))
        await self._redis.execute(
            "EVAL", _GIVE_BACK, 2, *_counters(tenant, limit), *arguments, timeout_s=self._timeout_s
        )

    async def check(self, timeout_s: float) -> None:
        """Take and return tokens of a tenant that does not exist. Raises CacheUnavailable."""
        checked, tenant = RedisTokenRateLimit(self._redis, timeout_s), f"check:{secrets.token_hex(16)}"
        for _ in range(2):  # the second time nothing is left, and the library's other script runs
            await checked.take(tenant, 1, 1)
        await checked.give_back(tenant, 1, 1)
        # What the library's script does only when a minute has passed.
        await self._redis.execute("EVAL", _MOVE, 2, *reversed(_counters(tenant, 1)), timeout_s=timeout_s)

    async def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        return await self._redis.attempt(call, self._timeout_s)


class _Storage(RedisStorage):
    """The library's storage, which sends its scripts through `redis`: to one server, or to a cluster."""

    def __init__(self, redis: RedisClient) -> None:
        self._scripts = _Scripts(redis)
        super().__init__("async+redis://", implementation="redispy", key_prefix=_PREFIX)

    def configure_bridge(self) -> None:
        bridge = cast(RedispyBridge, self.bridge)
        bridge.connection_getter = lambda readonly: cast(Any, self._scripts)


class _Scripts:
    """What the library needs of a client. EVAL, not EVALSHA: a server that has just become a primary has no script."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def register_script(self, script: bytes) -> Callable[[list[str], list[int]], Awaitable[object]]:
        async def run(keys: list[str], arguments: list[int]) -> object:
            return await self._redis.send("EVAL", script, len(keys), *keys, *arguments)

        return run


def _counters(tenant: str, limit: int) -> tuple[str, str]:
    """The library's keys of the window before and of the current one (`RedisStorage._current_window_key`). What is in
    braces is the same, so that a cluster keeps both on one server."""
    current = f"{_PREFIX}:{{{RateLimitItemPerMinute(limit).key_for(tenant)}}}"
    return f"{current}/-1", current
