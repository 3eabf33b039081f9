"""Opens the usage counts of tenants: in this process for memory://, else in the cache's Redis."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from presift.cache.factory import is_memory
from presift.cache.redis_client import RedisClient
from presift.cache.store import CacheLimits
from presift.orchestrator.admission.concurrency_limit import RedisConcurrencyLimit
from presift.orchestrator.admission.quotas import FailureMode, Quotas
from presift.orchestrator.admission.token_rate_limit import RedisTokenRateLimit


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """The quotas, and the connection to Redis that they use."""

    quotas: Quotas
    redis: RedisClient | None = None

    async def aclose(self) -> None:
        await self.quotas.aclose()
        if self.redis is not None:
            await self.redis.aclose()


def open_usage_limits(url: str, timeout_s: float, on_failure: FailureMode) -> UsageLimits:
    """Does not connect yet. Raises InvalidRequest, which does not quote the URL."""
    if is_memory(url):
        return UsageLimits(Quotas(on_failure=on_failure))
    # Its own connections and its own circuit breaker: a slow cache must not make usage unavailable.
    # Its failures are logged by the quotas, with what they mean for callers.
    redis = RedisClient(url, CacheLimits(), logging.DEBUG)
    quotas = Quotas(RedisTokenRateLimit(redis, timeout_s), RedisConcurrencyLimit(redis, timeout_s), on_failure)
    return UsageLimits(quotas, redis)
