"""Prefix index: estimates how much of a prompt each target holds in its radix cache, and each draft in its own.

Prompts are stored as block hashes, never as tokens. Targets do not report how long they hold a prompt. Each is assumed
to hold everything that it has read, until an answer shows that it has evicted something newer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from presift.orchestrator.estimation.block_hash import BLOCK_TOKENS, PAGE_BLOCKS, BlockHashes

# Memory of a block in a full index: its hash and its place in the table (measured, rounded up).
BLOCK_BYTES = 256
# Bytes of the hashes that are kept, with their prompts: one request needs those of its prompt several times. Those of
# the longest prompt take 7 MiB.
HASHES_BYTES = 32 * 2**20
# Of one prompt: the entry, and for each block the hash and its place in two tables (measured, rounded up).
_PROMPT_BYTES, _HASH_BYTES = 1024, 192
# After an eviction was seen, the estimate of what the target holds shrinks to this share of the evicted block's age.
_SHRINK = 0.9


@dataclass(slots=True)
class _TargetCache:
    """What one target has read. `blocks` maps a block to the tokens that the target had read by then, and to the number
    of the record, the oldest record first. `holds_tokens` is the estimate: of the tokens read last, so many are still
    cached."""

    blocks: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)
    read_tokens: int = 0
    holds_tokens: float = inf

    @property
    def oldest(self) -> float:
        """The number of the oldest record of which a block is left; inf without blocks."""
        return next((record for _, record in self.blocks.values()), inf)

    def age(self, block: int) -> float:
        """Tokens read since this block was read; inf if it never was."""
        known = self.blocks.get(block)
        return inf if known is None else self.read_tokens - known[0]

    def touch(self, blocks: Iterable[int], now: int) -> None:
        """Record that the target has just read the blocks."""
        record = self.read_tokens, now  # one value for all blocks saves 100 bytes of each
        for block in blocks:
            self.blocks[block] = record
            self.blocks.move_to_end(block)

    def record_missing(self, block: int, began: float) -> bool:
        """Shrink the estimate, because a block that should be cached is not. False if this shows nothing: the block was
        read after `began`, or was not expected to be cached."""
        age = self.age(block)
        if age > self.holds_tokens or self.blocks[block][1] > began:
            return False
        self.holds_tokens = age * _SHRINK - 1  # below 0: it holds nothing
        return True

    def has(self, block: int) -> bool:
        """Whether the target is expected to hold the block."""
        return self.age(block) <= self.holds_tokens and block in self.blocks


class PrefixIndex:
    """Keeps at most `memory_bytes` of blocks, of all targets and drafts together: those read least recently go first.

    `now` is the number of records so far.
    """

    def __init__(self, memory_bytes: int = 128 * 2**20) -> None:
        self._max_blocks = memory_bytes // BLOCK_BYTES
        self._caches: dict[str, _TargetCache] = {}
        self.now = 0
        self._hashes: LRUCache[tuple[int, str], tuple[NDArray[np.uint32], BlockHashes]]
        self._hashes = LRUCache(HASHES_BYTES, lambda kept: _prompt_bytes(kept[1]))

    def hashes_of(self, token_ids: NDArray[np.uint32], salt: str = "") -> BlockHashes:
        """The block hashes of a prompt, uint32[tokens]; another salt gives other hashes. The array must not change: it
        is recognised by its identity."""
        key = id(token_ids), salt
        known = self._hashes.get(key)
        if known is None:
            known = token_ids, BlockHashes(token_ids, salt.encode())
            with suppress(ValueError):  # larger than the memory
                self._hashes[key] = known  # the stored reference keeps Python from reusing the identity
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

    def expected_of(self, target: str, blocks: Sequence[int]) -> int:
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
        known = tuple(takewhile(cache.blocks.__contains__, hashes))
        cached_blocks = cached_tokens // BLOCK_TOKENS
        if held := known[:cached_blocks]:
            oldest = min(map(cache.blocks.__getitem__, held))[0]
            cache.holds_tokens = max(cache.holds_tokens, cache.read_tokens - oldest)
        # The last token is always read again and pages round down: a difference of one block shows nothing.
        first = cached_blocks + 1 if cached_tokens else 0
        for block in known[first:]:
            if cache.record_missing(block, began):
                return

    def record_entry_lookup(self, target: str, name: int, *, was_found: bool, began: float = inf) -> None:
        """Record whether the target had a compressed entry. Call before `record_entry_use`."""
        cache = self._caches.get(target)
        age = inf if cache is None else cache.age(name)
        if cache is None or age == inf:
            return
        if was_found:
            cache.holds_tokens = max(cache.holds_tokens, age)
        else:
            cache.record_missing(name, began)

    def record_entry_use(self, target: str, name: int, new_tokens: int) -> None:
        """Record that the target used a compressed entry, for which it wrote `new_tokens`. `expected_of` finds it."""
        self._record(target, (name,), new_tokens)

    def record_read(self, target: str, hashes: BlockHashes, cached_tokens: int = 0) -> None:
        """Record that the target has read this prompt; all but `cached_tokens` were new to it."""
        self._record(target, _backwards(hashes, self._max_blocks), max(0, hashes.tokens - cached_tokens))

    def _record(self, target: str, blocks: Iterable[int], new_tokens: int) -> None:
        cache = self._caches.setdefault(target, _TargetCache())
        cache.read_tokens += new_tokens
        self.now += 1
        cache.touch(blocks, self.now)
        if not cache.blocks:  # a prompt shorter than a block
            del self._caches[target]
        self._evict()

    def _evict(self) -> None:
        """Drop the oldest records, and the targets of which nothing is left."""
        excess = sum(len(each.blocks) for each in self._caches.values()) - self._max_blocks
        while excess > 0:
            target, cache = min(self._caches.items(), key=lambda named: named[1].oldest)
            record = cache.oldest
            while excess > 0 and cache.oldest == record < inf:
                cache.blocks.popitem(last=False)
                excess -= 1
            if not cache.blocks:
                del self._caches[target]


def _backwards(hashes: BlockHashes, max_blocks: int) -> Iterator[int]:
    """The first `max_blocks` blocks of a prompt and its pages, from the end, so that the end is evicted first: without
    the beginning it has no use."""
    blocks = min(hashes.blocks, max_blocks)
    for page in reversed(range(-(-blocks // PAGE_BLOCKS))):
        of_page = hashes.blocks_of_page(page)[: blocks - page * PAGE_BLOCKS]
        if len(of_page) == PAGE_BLOCKS:
            yield hashes.page(page + 1)
        yield from reversed(of_page)


def _prompt_bytes(hashes: BlockHashes) -> int:
    """Once all hashes are computed, with the prompt's array."""
    return _PROMPT_BYTES + 4 * hashes.tokens + _HASH_BYTES * hashes.blocks


def _leading(cache: _TargetCache, count: int, block: Callable[[int], int]) -> int:
    """How many of `count` blocks, from the first on, are held.

    A target that read a block has read all before it, and the first blocks are evicted last: those that are held lie in
    front, so a binary search finds their number.
    """
    if count < 1 or not cache.has(block(0)):
        return 0
    return bisect_left(range(count), True, key=lambda index: not cache.has(block(index)))
