"""The port of the stampede guard across processes: whoever claims a digest computes it, the others wait for the value.

claim -> value          another process computed it meanwhile: use it
claim -> None           compute it, `put` it, then `release`; on failure or cancellation `release` at once

Within one process presift.cache.single_flight comes first, so at most one claim per digest is open in it.
"""

from __future__ import annotations

from typing import Protocol

from presift.core.plan import CompressedPrompt


class BuildLock(Protocol):
    """Like a Store it never raises for cache trouble: then everybody computes for themselves."""

    @property
    def held(self) -> int:
        """How many this process holds, that is, what it computes for all."""
        ...

    async def claim(self, digest: str) -> CompressedPrompt | None:
        """Another process's value, waited for at most the lease time; None: compute it yourself."""
        ...

    async def release(self, digest: str) -> None:
        """Let the others go on. Call it after `put`, else they find neither value nor lease and compute again."""
        ...


class NoBuildLock:
    """For a store that no other process shares."""

    @property
    def held(self) -> int:
        return 0

    async def claim(self, digest: str) -> CompressedPrompt | None:
        return None

    async def release(self, digest: str) -> None:
        return None
