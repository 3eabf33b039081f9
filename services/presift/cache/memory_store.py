"""Compressed prompts in this process's memory, with LRU eviction and a time to live."""

from __future__ import annotations

import time
from collections.abc import Callable

from cachetools import TTLCache

from presift.cache.codec import ValueTooLarge, decode, encode
from presift.cache.store import CacheLimits, CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt

# Memory of an entry without its encoded value: key, bytes object, link, timer and dict slots (measured, rounded up).
ENTRY_OVERHEAD_BYTES = 512


class MemoryStore:
    """A Store bounded by `limits.memory_bytes` and `limits.ttl_s`. `clock` is monotonic, in seconds.

    Values are kept encoded: ten times smaller than their arrays, and of known size.
    """

    def __init__(
        self, limits: CacheLimits, observe: CacheObserver = ignore, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._observe = observe
        self._entries: TTLCache[str, bytes] = TTLCache(limits.memory_bytes, limits.ttl_s, clock, _entry_bytes)

    @property
    def is_available(self) -> bool:
        return True

    async def get(self, digest: str) -> CompressedPrompt | None:
        data = self._entries.get(digest)
        self._observe(Operation.GET, Outcome.MISS if data is None else Outcome.HIT)
        return None if data is None else decode(digest, data)

    async def put(self, digest: str, value: CompressedPrompt) -> None:
        self._observe(Operation.PUT, self._keep(digest, value))

    async def aclose(self) -> None:
        self._entries.clear()

    def _keep(self, digest: str, value: CompressedPrompt) -> Outcome:
        room_bytes = self._limits.memory_bytes - ENTRY_OVERHEAD_BYTES
        try:
            data = encode(digest, value, min(self._limits.max_value_bytes, room_bytes))
        except ValueTooLarge:
            return Outcome.TOO_LARGE
        self._entries[digest] = data
        return Outcome.STORED


def _entry_bytes(data: bytes) -> int:
    return len(data) + ENTRY_OVERHEAD_BYTES
