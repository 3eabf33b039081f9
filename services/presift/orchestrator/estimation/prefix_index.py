"""Prefixes: how much of a prompt a target's radix cache is expected to hold, from our own traffic and what came back.

Prompts are remembered as chains of block hashes, never as tokens. How long a target holds a prompt is not said by
anyone: it is believed to hold whatever it read since, until it is seen to have dropped something that was younger.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from presift.orchestrator.estimation.block_hash import BLOCK_TOKENS, PAGE_BLOCKS, BlockHashes

# Prompts whose hashes are kept; one request asks for its prompt's several times.
KEPT_CHAINS = 32
# What a target that dropped something is believed to hold from now on, of the tokens read since that was last read.
_SHRINK = 0.9


@dataclass(slots=True)
class _Held:
    """What one target read: block -> the count of tokens that it had read by then, and when in the order of all that
    was remembered. `holds_tokens`: as believed."""

    blocks: OrderedDict[Hashable, tuple[int, int]] = field(default_factory=OrderedDict)
    read_tokens: int = 0
    holds_tokens: float = inf

    def age(self, block: Hashable) -> float:
        """Tokens read since this block was; inf where it never was."""
        known = self.blocks.get(block)
        return inf if known is None else self.read_tokens - known[0]

    def touch(self, block: Hashable, now: int) -> None:
        """The target has just read it."""
        self.blocks[block] = self.read_tokens, now
        self.blocks.move_to_end(block)

    def blame(self, block: Hashable, began: float) -> bool:
        """The target lacks what it was believed to hold: so it holds less. Whether that can be said: what was read
        after `began` may not have been there yet."""
        age = self.age(block)
        if age > self.holds_tokens or self.blocks[block][1] > began:
            return False
        self.holds_tokens = age * _SHRINK - 1  # below 0: it holds nothing at all
        return True

    def has(self, block: Hashable) -> bool:
        """Whether the target is believed to hold it still."""
        return self.age(block) <= self.holds_tokens and block in self.blocks


class PrefixIndex:
    """Remembers at most `blocks` blocks of `BLOCK_TOKENS` tokens for each of at most `targets` targets."""

    def __init__(self, blocks: int = 65_536, targets: int = 64) -> None:
        self._blocks = blocks
        self._targets = targets
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.now = 0  # how often something was remembered
        self._chains: OrderedDict[tuple[int, str], tuple[NDArray[np.uint32], BlockHashes]] = OrderedDict()

    def chain(self, token_ids: NDArray[np.uint32], salt: str = "") -> BlockHashes:
        """The prompt as all questions here take it; of another salt it is another one. The array must not change: it is
        known again by its identity."""
        key = id(token_ids), salt
        known = self._chains.get(key)
        if known is None:  # an identity is not given anew while its array is held here
            known = self._chains[key] = token_ids, BlockHashes(token_ids, salt.encode())
            if len(self._chains) > KEPT_CHAINS:
                self._chains.popitem(last=False)
        return known[1]

    def expected(self, target: str, chain: BlockHashes) -> int:
        """The tokens of this prompt's beginning that the target is expected to hold, in whole blocks."""
        held = self._held.get(target)
        if held is None:
            return 0
        pages = _leading(held, chain.blocks // PAGE_BLOCKS, lambda index: chain.page(index + 1))
        first = pages * PAGE_BLOCKS
        rest = _leading(held, min(PAGE_BLOCKS, chain.blocks - first), lambda index: chain.block(first + index))
        return (first + rest) * BLOCK_TOKENS

    def expected_of(self, target: str, blocks: Sequence[Hashable]) -> int:
        """The same of a chain's blocks that were kept."""
        held = self._held.get(target)
        return 0 if held is None else _leading(held, len(blocks), blocks.__getitem__) * BLOCK_TOKENS

    def learn(self, target: str, chain: BlockHashes, cached_tokens: int, began: float = inf) -> None:
        """The target had `cached_tokens` of this prompt before it read the rest. Call before `remember`.

        `began`: `now` when the reading began. What others have read since says nothing of what was there then.
        """
        held = self._held.get(target)
        if held is None:
            return
        for index, block in enumerate(chain):
            age = held.age(block)
            if age == inf:
                return
            if (index + 1) * BLOCK_TOKENS <= cached_tokens:
                held.holds_tokens = max(held.holds_tokens, age)
            # The last token is always read again, and pages round down: one block is not worth a belief.
            elif (index * BLOCK_TOKENS > cached_tokens or cached_tokens == 0) and held.blame(block, began):
                return

    def learn_entry(self, target: str, name: Hashable, *, was_found: bool, began: float = inf) -> None:
        """Whether the target had a compressed entry. Call before `remember_entry`."""
        held = self._held.get(target)
        age = inf if held is None else held.age(name)
        if held is None or age == inf:
            return
        if was_found:
            held.holds_tokens = max(held.holds_tokens, age)
        else:
            held.blame(name, began)

    def remember_entry(self, target: str, name: Hashable, new_tokens: int) -> None:
        """The target has used a compressed entry, for which it wrote `new_tokens`; ask `expected_of` for it."""
        held = self._holder(target)
        held.read_tokens += new_tokens
        self.now += 1
        held.touch(name, self.now)
        self._forget(held)

    def remember(self, target: str, chain: BlockHashes, cached_tokens: int = 0) -> None:
        """The target has read this prompt; all but `cached_tokens` were new to it."""
        held = self._holder(target)
        held.read_tokens += max(0, chain.tokens - cached_tokens)
        self.now += 1
        # The beginning last: what is forgotten first are the ends, as without its beginning an end is worth nothing.
        for index in reversed(range(min(chain.blocks, self._blocks))):
            pages, within = divmod(index + 1, PAGE_BLOCKS)
            if within == 0:
                held.touch(chain.page(pages), self.now)
            held.touch(chain.block(index), self.now)
        self._forget(held)

    def _holder(self, target: str) -> _Held:
        held = self._held.setdefault(target, _Held())
        self._held.move_to_end(target)
        while len(self._held) > self._targets:
            self._held.popitem(last=False)
        return held

    def _forget(self, held: _Held) -> None:
        while len(held.blocks) > self._blocks:
            held.blocks.popitem(last=False)


def _leading(held: _Held, count: int, block: Callable[[int], Hashable]) -> int:
    """How many of `count` blocks, from the first on, are held.

    Whoever read a block read all before it, and what was read first is forgotten last: all that are held lie in front.
    """
    if count < 1 or not held.has(block(0)):
        return 0
    return bisect_left(range(count), True, key=lambda index: not held.has(block(index)))
