"""Chooses the draft that has least to read: a conversation goes to the draft that keeps the KV of its earlier turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from presift.rpc.pool.balancer import L


class PrefixMemory(Protocol):
    """What each replica has read, as block hashes; `PrefixIndex` is one."""

    def hashes_of(self, token_ids: NDArray[np.uint32], salt: str = "") -> Any: ...

    def expected(self, target: str, hashes: Any) -> int: ...

    def record_cached(self, target: str, hashes: Any, cached_tokens: int) -> None: ...

    def record_read(self, target: str, hashes: Any, cached_tokens: int = 0) -> None: ...


class DraftPicker:
    """Counts tokens, because a draft reads one prompt at a time and its time grows with them.

    Knows the prompts and replies of this process only. Drafts that have equally much to read are taken in the order in
    which they are given.
    """

    def __init__(self, memory: PrefixMemory) -> None:
        self._memory = memory
        self._waiting: Counter[str] = Counter()  # tokens of running calls, by the draft's address

    def best(self, drafts: Sequence[L], token_ids: NDArray[np.uint32], salt: str) -> tuple[L, int]:
        """The draft with the fewest tokens to read before it has read this prompt, uint32[n], and how many of those are
        the prompt's. Raises ValueError if there is no draft."""
        unread = {each.address: self._unread(each.address, token_ids, salt) for each in drafts}
        best = min(drafts, key=lambda each: self._waiting[each.address] + unread[each.address])
        return best, unread[best.address]

    @contextmanager
    def reading(self, draft: L, tokens: int) -> Iterator[None]:
        """Count so many tokens as waiting at a draft until the block ends."""
        self._waiting[draft.address] += tokens
        try:
            yield
        finally:
            self._waiting[draft.address] -= tokens
            if not self._waiting[draft.address]:
                del self._waiting[draft.address]

    def record(self, draft: L, token_ids: NDArray[np.uint32], salt: str, cached_tokens: int) -> None:
        """Record that a draft has read this prompt, of which it had kept `cached_tokens`."""
        hashes = self._memory.hashes_of(token_ids, salt)
        self._memory.record_cached(_name(draft.address), hashes, cached_tokens)
        self._memory.record_read(_name(draft.address), hashes, cached_tokens)

    def _unread(self, address: str, token_ids: NDArray[np.uint32], salt: str) -> int:
        held = self._memory.expected(_name(address), self._memory.hashes_of(token_ids, salt))
        return max(1, int(token_ids.size) - held)


def _name(address: str) -> str:
    return f"draft at {address}"
