"""The port of a lock per digest across processes: its holder computes the value, the others wait for it.

claim -> value          another process computed it: use it
claim -> None           compute it, `put` it, then `release`; after a failure or cancellation `release` at once

Within one process presift.cache.single_flight comes first, so a process has at most one open claim per digest.
"""

from __future__ import annotations

from typing import Protocol

from presift.core.plan import CompressedPrompt


class BuildLock(Protocol):
    """Like a Store it never raises for cache failures: then every process computes for itself."""

    @property
    def held(self) -> int:
        """The number of leases that this process holds."""
        ...

    async def claim(self, digest: str) -> CompressedPrompt | None:
        """Another process's value, waited for while that process lives, for a limited time. None: compute it."""
        ...

    async def release(self, digest: str) -> None:
        """Release the lease. Call it after `put`; otherwise others find neither value nor lease and compute again."""
        ...


class NoBuildLock:
    """For a store that this process does not share."""

    @property
    def held(self) -> int:
        return 0

    async def claim(self, digest: str) -> CompressedPrompt | None:
        return None

    async def release(self, digest: str) -> None:
        return None
