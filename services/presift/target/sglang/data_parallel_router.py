"""Which of an engine's model replicas (data parallelism) gets a request: the one that has read its prompt, else the
least busy one.

Each replica has a radix cache and compressed KV of its own. So a prompt that is read ahead, its answer and the later
turns of its conversation go to one replica, unless a turn brings more than was read before or the replica is busy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# Prompts are compared by blocks of so many tokens, and as a whole.
_BLOCK_TOKENS = 256
# How many beginnings of prompts are remembered: about 200 bytes each.
_REMEMBERED = 65_536
# A replica is chosen for the prompt only if it has read at least this share of it: a common system prompt must not
# bring every request to one replica.
_LEAST_SHARE = 0.5
# By how many requests more than the least busy replica another one may have because of what it has read.
_MOST_AHEAD = 4


class DataParallelRouter:
    """The choices of one engine with `replicas` replicas. Requests with different salts share no KV."""

    def __init__(self, replicas: int) -> None:
        self._running = [0] * replicas
        self._readers: OrderedDict[bytes, int] = OrderedDict()

    @contextmanager
    def chosen(self, token_ids: NDArray[np.uint32], salt: str) -> Iterator[int | None]:
        """The replica for a prompt; None if there is but one. It counts as busy with it until the block ends."""
        if len(self._running) == 1:
            yield None
            return
        replica = self._choose(_beginnings(token_ids, salt))
        self._running[replica] += 1
        try:
            yield replica
        finally:
            self._running[replica] -= 1

    def _choose(self, beginnings: list[tuple[bytes, float]]) -> int:
        least_busy = min(range(len(self._running)), key=self._running.__getitem__)
        replica = self._reader_of(beginnings)
        if replica is None or self._running[replica] > self._running[least_busy] + _MOST_AHEAD:
            replica = least_busy
        for digest, _ in beginnings:
            self._readers[digest] = replica
            self._readers.move_to_end(digest)
        while len(self._readers) > _REMEMBERED:
            self._readers.popitem(last=False)
        return replica

    def _reader_of(self, beginnings: list[tuple[bytes, float]]) -> int | None:
        """The replica that has last read the longest known beginning, if that is long enough."""
        for digest, share in reversed(beginnings):
            if share < _LEAST_SHARE:
                return None
            if digest in self._readers:
                return self._readers[digest]
        return None


def _beginnings(token_ids: NDArray[np.uint32], salt: str) -> list[tuple[bytes, float]]:
    """The digests of a prompt's beginnings, shortest first, and which share of the prompt each is. The last is all."""
    hasher, tokens, found = blake2b(salt.encode(), digest_size=16), len(token_ids), []
    hasher.update(b"\0")
    for first in range(0, tokens, _BLOCK_TOKENS):
        block = token_ids[first : first + _BLOCK_TOKENS]
        hasher.update(np.ascontiguousarray(block, dtype="<u4").tobytes())
        found.append((hasher.digest(), (first + len(block)) / tokens))
    return found
