"""Prefix index: estimates how much of a prompt each target holds in its radix cache, and each draft in its own.

Prompts are stored as block hashes, never as tokens. Targets do not report how long they hold a prompt. Each is assumed
to hold everything that it has read, until an answer shows that it has evicted something newer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from cachetools import FIFOCache
from numpy.typing import NDArray

from presift.orchestrator.estimation.block_hash import BLOCK_TOKENS, PAGE_BLOCKS, BlockHashes

# Prompts whose hashes are kept: one request needs those of its prompt several times.
KEPT_HASHES = 32
# After an eviction was seen, the estimate of what the target holds shrinks to this share of the evicted block's age.
_SHRINK = 0.9


@dataclass(slots=True)
class _TargetCache:
    """What one target has read. `blocks` maps a block to the tokens that the target had read by then, and to the number
    of the record. `holds_tokens` is the estimate: of the tokens read last, so many are still cached."""

    blocks: OrderedDict[Hashable, tuple[int, int]] = field(default_factory=OrderedDict)
    read_tokens: int = 0
    holds_tokens: float = inf

    def age(self, block: Hashable) -> float:
        """Tokens read since this block was read; inf if it never was."""
        known = self.blocks.get(block)
        return inf if known is None else self.read_tokens - known[0]

    def touch(self, block: Hashable, now: int) -> None:
        """Record that the target has just read the block."""
        self.blocks[block] = self.read_tokens, now
        self.blocks.move_to_end(block)

    def record_missing(self, block: Hashable, began: float) -> bool:
        """Shrink the estimate, because a block that should be cached is not. False if this shows nothing: the block was
        read after `began`, or was not expected to be cached."""
        age = self.age(block)
        if age > self.holds_tokens or self.blocks[block][1] > began:
            return False
        self.holds_tokens = age * _SHRINK - 1  # below 0: it holds nothing
        return True

    def has(self, block: Hashable) -> bool:
        """Whether the target is expected to hold the block."""
        return self.age(block) <= self.holds_tokens and block in self.blocks


class PrefixIndex:
    """Keeps at most `blocks` blocks of `BLOCK_TOKENS` tokens for each of at most `targets` targets.

    `now` is the number of records so far.
    """

    def __init__(self, blocks: int = 65_536, targets: int = 64) -> None:
        self._blocks = blocks
        self._targets = targets
        # Not an LRUCache: looking a target or a block up must not make it newer.
        self._caches: OrderedDict[str, _TargetCache] = OrderedDict()
        self.now = 0
        self._hashes: FIFOCache[tuple[int, str], tuple[NDArray[np.uint32], BlockHashes]] = FIFOCache(KEPT_HASHES)

    def hashes_of(self, token_ids: NDArray[np.uint32], salt: str = "") -> BlockHashes:
        """The block hashes of a prompt, uint32[tokens]; another salt gives other hashes. The array must not change: it
        is recognised by its identity."""
        key = id(token_ids), salt
        known = self._hashes.get(key)
        if known is None:  # the stored reference keeps Python from reusing the identity
            known = self._hashes[key] = token_ids, BlockHashes(token_ids, salt.encode())
        return known[1]

    def expected(self, target: str, hashes: BlockHashes) -> int:
        """How many tokens of this prompt's beginning the target is expected to hold, in whole blocks."""
        cache = self._caches.get(target)
        if cache is None:
            return 0
        pages = _leading(cache, hashes.blocks // PAGE_BLOCKS, lambda index: hashes.page(index + 1))
        first = pages * PAGE_BLOCKS
        rest = _leading(cache, min(PAGE_BLOCKS, hashes.blocks - first), lambda index: hashes.block(first + index))
        return (first + rest) * BLOCK_TOKENS

    def expected_of(self, target: str, blocks: Sequence[Hashable]) -> int:
        """The same for a sequence of blocks."""
        cache = self._caches.get(target)
        return 0 if cache is None else _leading(cache, len(blocks), blocks.__getitem__) * BLOCK_TOKENS

    def record_cached(self, target: str, hashes: BlockHashes, cached_tokens: int, began: float = inf) -> None:
        """Record that the target had `cached_tokens` of this prompt before it read the rest. Call before `record_read`.

        `began` is `now` when the reading began: what was recorded later may not have been cached then.
        """
        cache = self._caches.get(target)
        if cache is None:
            return
        for index, block in enumerate(hashes):
            age = cache.age(block)
            if age == inf:
                return
            if (index + 1) * BLOCK_TOKENS <= cached_tokens:
                cache.holds_tokens = max(cache.holds_tokens, age)
            # The last token is always read again and pages round down: a difference of one block shows nothing.
            elif (index * BLOCK_TOKENS > cached_tokens or cached_tokens == 0) and cache.record_missing(block, began):
                return

    def record_entry_lookup(self, target: str, name: Hashable, *, was_found: bool, began: float = inf) -> None:
        """Record whether the target had a compressed entry. Call before `record_entry_use`."""
        cache = self._caches.get(target)
        age = inf if cache is None else cache.age(name)
        if cache is None or age == inf:
            return
        if was_found:
            cache.holds_tokens = max(cache.holds_tokens, age)
        else:
            cache.record_missing(name, began)

    def record_entry_use(self, target: str, name: Hashable, new_tokens: int) -> None:
        """Record that the target used a compressed entry, for which it wrote `new_tokens`. `expected_of` finds it."""
        cache = self._cache_of(target)
        cache.read_tokens += new_tokens
        self.now += 1
        cache.touch(name, self.now)
        self._evict(cache)

    def record_read(self, target: str, hashes: BlockHashes, cached_tokens: int = 0) -> None:
        """Record that the target has read this prompt; all but `cached_tokens` were new to it."""
        cache = self._cache_of(target)
        cache.read_tokens += max(0, hashes.tokens - cached_tokens)
        self.now += 1
        # Backwards, so that the end of a prompt is evicted first: without its beginning it has no use.
        for index in reversed(range(min(hashes.blocks, self._blocks))):
            pages, within = divmod(index + 1, PAGE_BLOCKS)
            if within == 0:
                cache.touch(hashes.page(pages), self.now)
            cache.touch(hashes.block(index), self.now)
        self._evict(cache)

    def _cache_of(self, target: str) -> _TargetCache:
        cache = self._caches.setdefault(target, _TargetCache())
        self._caches.move_to_end(target)
        while len(self._caches) > self._targets:
            self._caches.popitem(last=False)
        return cache

    def _evict(self, cache: _TargetCache) -> None:
        while len(cache.blocks) > self._blocks:
            cache.blocks.popitem(last=False)


def _leading(cache: _TargetCache, count: int, block: Callable[[int], Hashable]) -> int:
    """How many of `count` blocks, from the first on, are held.

    A target that read a block has read all before it, and the first blocks are evicted last: those that are held lie in
    front, so a binary search finds their number.
    """
    if count < 1 or not cache.has(block(0)):
        return 0
    return bisect_left(range(count), True, key=lambda index: not cache.has(block(index)))
