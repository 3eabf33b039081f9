"""From a URL to the counts of what tenants use: in this process for memory://, else in the Redis of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from presift.cache.redis_link import RedisLink
from presift.cache.store import CacheLimits
from presift.orchestrator.access.allowances import Allowances, OnTrouble
from presift.orchestrator.access.leases import RedisLeases
from presift.orchestrator.access.rates import Rates


@dataclass(frozen=True, slots=True)
class Counts:
    """`link` is closed after all that goes over it."""

    allowances: Allowances
    link: RedisLink | None = None

    async def aclose(self) -> None:
        await self.allowances.aclose()
        if self.link is not None:
            await self.link.aclose()


def open_counts(url: str, timeout_s: float, on_trouble: OnTrouble) -> Counts:
    """Connects to nothing yet. Raises InvalidRequest, which does not quote the URL."""
    if url.partition("://")[0].lower() == "memory":
        return Counts(Allowances(on_trouble=on_trouble))
    # Connections and rests of its own: a slow cache must not make limits unknown.
    link = RedisLink(url, CacheLimits())
    return Counts(Allowances(Rates(link, timeout_s), RedisLeases(link, timeout_s), on_trouble), link)
