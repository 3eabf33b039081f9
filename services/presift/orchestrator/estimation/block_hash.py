"""Block hashes: a prompt as hashes of its blocks, each over everything before it too.

These are Python's own hashes, with a new key in each process: callers cannot provoke a collision, and a collision would
only make a prediction wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
PAGE_BLOCKS = 16


class BlockHashes:
    """The block hashes of one prompt, computed on demand.

    A page of `PAGE_BLOCKS` blocks has its own hash, so that a search in a long prompt goes by pages and, at its end, by
    blocks.
    """

    def __init__(self, token_ids: NDArray[np.uint32], salt: bytes) -> None:
        self.tokens = int(token_ids.size)
        self.blocks = self.tokens // BLOCK_TOKENS
        self._ids = token_ids
        self._pages = [hash(salt)]
        self._hashes: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        return (self.block(index) for index in range(self.blocks))

    @property
    def name(self) -> int:
        """The hash of the whole prompt."""
        # The rest after the last full page is shorter than a page.
        pages = self.blocks // PAGE_BLOCKS
        return self._next(self.page(pages), pages, PAGE_BLOCKS)

    def page(self, index: int) -> int:
        """The hash of the first `index` pages."""
        while len(self._pages) <= index:
            self._pages.append(self._next(self._pages[-1], len(self._pages) - 1, PAGE_BLOCKS))
        return self._pages[index]

    def block(self, index: int) -> int:
        """The hash of the first `index + 1` blocks."""
        if index not in self._hashes:
            page, within = divmod(index, PAGE_BLOCKS)
            before = self.block(index - 1) if within else self.page(page)
            self._hashes[index] = self._next(before, index, 1)
        return self._hashes[index]

    def _next(self, before: int, index: int, blocks: int) -> int:
        size = BLOCK_TOKENS * blocks
        return hash((before, self._ids[index * size : (index + 1) * size].tobytes()))
