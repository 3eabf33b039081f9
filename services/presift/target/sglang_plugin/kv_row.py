"""Replaces the KV of a request that is decoding, between two steps.

Under overlapped scheduling a step may be in flight that reads the old slots. It has its own copies of the batch's
tensors, and SGLang orders its reads before later writes: to the request's row by its own barrier, to KV slots because
only later forward passes, in the same stream, write to slots that were freed here. SGLang relies on the same when it
retracts requests.

Position i of a row lies in a slot that is i modulo the page size. With pages of several tokens, what was generated
during the selection therefore moves to slots behind the new ones, and the old pages are freed as a whole.
"""

from __future__ import annotations

from typing import Any

import torch

from presift.target.sglang_plugin.entry_pins import allocate
from presift.target.sglang_plugin.sglang_names import release_prefix
from presift.target.sglang_plugin.transfers import wait_for_stream


def can_replace_head(request: Any, head: int) -> bool:
    """Whether the first `head` slots of a request's row include those of the tree, and none is reserved for later."""
    kv = request.kv
    return bool(kv.cache_protected_len <= head <= kv.kv_committed_len == kv.kv_allocated_len)


def replace_head(scheduler: Any, batch: Any, index: int, head: int, slots: torch.Tensor) -> bool:
    """Let `slots` int64[C], made by `allocate`, take the place of the first `head` KV slots of request `index` of
    `batch`, which are freed. Returns False, and changes nothing, if the pool has no room to move what follows them.

    From then on the request owns all its slots, and its KV is no longer what its tokens name, so that SGLang must not
    insert it into the radix tree. Only if `can_replace_head`.
    """
    request, tree, pool = batch.reqs[index], scheduler.tree_cache, scheduler.req_to_token_pool
    kv, row = request.kv, pool.req_to_token[request.kv.req_pool_idx]
    end, tail = head, row[head : kv.kv_committed_len]
    if scheduler.page_size > 1:
        moved = _move_behind(scheduler, slots, tail.long())
        if moved is None:
            return False
        end, tail = kv.kv_committed_len, moved
    replaced = torch.cat([slots.to(row.dtype), tail.to(row.dtype)])
    tree.free_kv_row(kv, [(kv.cache_protected_len, end)])
    release_prefix(tree, request, replaced.to(torch.int64))
    kv.cache_protected_len = 0
    pool.write((kv.req_pool_idx, slice(0, len(replaced))), replaced)
    request.skip_radix_cache_insert = True
    kv.kv_committed_len = kv.kv_allocated_len = len(replaced)
    _shorten(batch, index, head - len(slots))
    return True


def _move_behind(scheduler: Any, slots: torch.Tensor, tail: torch.Tensor) -> torch.Tensor | None:
    """Copy the KV of the slots `tail`, int64[t], to slots that continue the pages of `slots`: int64[t]. None if the
    pool has no room.
    """
    in_page = min(-len(slots) % scheduler.page_size, len(tail))
    moved = slots[-1] + 1 + torch.arange(in_page, device=slots.device)
    if len(tail) > in_page:
        more = allocate(scheduler.tree_cache, len(tail) - in_page)
        if more is None:
            return None
        moved = torch.cat([moved, more])
    # A step in flight writes to the last slot.
    wait_for_stream(scheduler.forward_stream, tail.device)
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    for layer in range(scheduler.model_config.num_hidden_layers):
        for buffer in (pool.get_key_buffer(layer), pool.get_value_buffer(layer)):
            buffer[moved] = buffer[tail]
    return moved


def _shorten(batch: Any, index: int, tokens: int) -> None:
    """Subtract `tokens` from the length of one request. New tensors: a step in flight may use the old ones."""
    if not tokens:
        return
    for name in ("seq_lens", "seq_lens_cpu", "orig_seq_lens"):
        lengths = getattr(batch, name).clone()
        lengths[index] -= tokens
        setattr(batch, name, lengths)
    batch.seq_lens_sum = None
