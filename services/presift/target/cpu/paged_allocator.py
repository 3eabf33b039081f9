"""SGLang's allocator of KV pages with several tokens, for a CPU: SGLang 0.5.21's own runs Triton kernels."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator, alloc_extend_naive
from sglang.srt.utils import get_num_new_pages


class CpuPagedAllocator(PagedTokenToKVPoolAllocator):  # type: ignore[misc]
    """Position i of a request lies in a slot that is i modulo the page size, and no two requests share a new page."""

    free_pages: torch.Tensor

    def alloc_extend(  # noqa: PLR0917 - as SGLang calls it
        self,
        prefix_lens: torch.Tensor,
        prefix_lens_cpu: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        last_loc: torch.Tensor,
        extend_num_tokens: int,
        num_new_pages: int | None = None,
    ) -> torch.Tensor | None:
        """The slots of the positions from `prefix_lens` to `seq_lens` of each request, int64[extend_num_tokens]; None
        if too few pages are free.

        `last_loc` int[requests]: the slot before the first of these positions, -1 where there is none.
        """
        if num_new_pages is None:
            num_new_pages = get_num_new_pages(seq_lens_cpu, self.page_size, prefix_lens_cpu)
        if num_new_pages > len(self.free_pages):
            self.merge_and_sort_free()
        if num_new_pages > len(self.free_pages):
            return None
        slots = torch.empty(extend_num_tokens, dtype=torch.int64, device=self.device)
        alloc_extend_naive(prefix_lens, seq_lens, last_loc, self.free_pages, slots, self.page_size, self.device)
        self.free_pages = self.free_pages[num_new_pages:]
        return slots

    def alloc_decode(
        self, seq_lens: torch.Tensor, seq_lens_cpu: torch.Tensor, last_loc: torch.Tensor
    ) -> torch.Tensor | None:
        """The slot of the last position of each request, int64[requests]; None if too few pages are free."""
        return self.alloc_extend(seq_lens - 1, seq_lens_cpu - 1, seq_lens, seq_lens_cpu, last_loc, len(seq_lens))
