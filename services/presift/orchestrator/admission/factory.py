"""From a URL to the counts of what tenants use: in this process for memory://, else in the Redis of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from presift.cache.redis_client import RedisClient
from presift.cache.store import CacheLimits
from presift.orchestrator.admission.concurrency_limit import RedisConcurrencyLimit
from presift.orchestrator.admission.quotas import FailureMode, Quotas
from presift.orchestrator.admission.token_rate_limit import TokenRateLimit


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """`link` is closed after all that goes over it."""

    allowances: Quotas
    link: RedisClient | None = None

    async def aclose(self) -> None:
        await self.allowances.aclose()
        if self.link is not None:
            await self.link.aclose()


def open_usage_limits(url: str, timeout_s: float, on_trouble: FailureMode) -> UsageLimits:
    """Connects to nothing yet. Raises InvalidRequest, which does not quote the URL."""
    if url.partition("://")[0].lower() == "memory":
        return UsageLimits(Quotas(on_trouble=on_trouble))
    # Connections and rests of its own: a slow cache must not make limits unknown.
    link = RedisClient(url, CacheLimits())
    return UsageLimits(
        Quotas(TokenRateLimit(link, timeout_s), RedisConcurrencyLimit(link, timeout_s), on_trouble), link
    )
