"""Block hashes: a prompt as hashes of its blocks, each over everything before it too.

These are Python's own hashes, with a new key in each process: callers cannot provoke a collision, and a collision would
only make a prediction wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
PAGE_BLOCKS = 16
_PAGE_TOKENS = PAGE_BLOCKS * BLOCK_TOKENS
_BLOCK_BYTES = BLOCK_TOKENS * np.dtype(np.uint32).itemsize


class BlockHashes:
    """The block hashes of one prompt, computed on demand: those of a page's blocks together.

    A page of `PAGE_BLOCKS` blocks has its own hash, so that a search in a long prompt goes by pages and, at its end, by
    blocks.
    """

    def __init__(self, token_ids: NDArray[np.uint32], salt: bytes) -> None:
        self.tokens = int(token_ids.size)
        self.blocks = self.tokens // BLOCK_TOKENS
        self._ids = token_ids
        self._pages = [hash(salt)]
        self._page_blocks: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(map(self.blocks_of_page, range(-(-self.blocks // PAGE_BLOCKS))))

    @property
    def name(self) -> int:
        """The hash of the whole prompt."""
        # The rest after the last full page is shorter than a page.
        pages = self.blocks // PAGE_BLOCKS
        return hash((self.page(pages), self._page_bytes(pages)))

    def followed_by(self, token_ids: Sequence[int]) -> BlockHashes:
        """The block hashes of the prompt with these tokens after it; what is known of its full pages is not computed
        again."""
        longer = BlockHashes(np.append(self._ids, np.array(token_ids, dtype=np.uint32)), b"")
        full_pages = self.blocks // PAGE_BLOCKS
        longer._pages = self._pages[: full_pages + 1]
        longer._page_blocks = {page: known for page, known in self._page_blocks.items() if page < full_pages}
        return longer

    def page(self, index: int) -> int:
        """The hash of the first `index` pages."""
        while len(self._pages) <= index:
            self._pages.append(hash((self._pages[-1], self._page_bytes(len(self._pages) - 1))))
        return self._pages[index]

    def block(self, index: int) -> int:
        """The hash of the first `index + 1` blocks."""
        page, within = divmod(index, PAGE_BLOCKS)
        return self.blocks_of_page(page)[within]

    def blocks_of_page(self, page: int) -> list[int]:
        """The hashes of the page's blocks, each with all blocks before it; the last page may be shorter."""
        known = self._page_blocks.get(page)
        if known is None:
            before, raw, known = self.page(page), self._page_bytes(page), list[int]()
            # One loop and one copy for all of them: a prompt has up to 16,384 blocks, and the event loop waits.
            for end in range(_BLOCK_BYTES, len(raw) + 1, _BLOCK_BYTES):
                before = hash((before, raw[end - _BLOCK_BYTES : end]))
                known.append(before)
            self._page_blocks[page] = known
        return known

    def _page_bytes(self, page: int) -> bytes:
        return self._ids[page * _PAGE_TOKENS : (page + 1) * _PAGE_TOKENS].tobytes()
