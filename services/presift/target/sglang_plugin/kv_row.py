"""Replaces the KV of a request that is decoding, between two steps.

Under overlapped scheduling a step may be in flight that reads the old slots. It has its own copies of the batch's
tensors, and SGLang orders its reads before later writes: to the request's row by its own barrier, to KV slots because
only later forward passes, in the same stream, write to slots that were freed here. SGLang relies on the same when it
retracts requests.
"""

from __future__ import annotations

from typing import Any

import torch

from presift.target.sglang_plugin.sglang_names import release_prefix


def can_replace_head(request: Any, head: int) -> bool:
    """Whether the first `head` slots of a request's row include those of the tree, and none is reserved for later."""
    kv = request.kv
    return bool(kv.cache_protected_len <= head <= kv.kv_committed_len == kv.kv_allocated_len)


def replace_head(scheduler: Any, batch: Any, index: int, head: int, slots: torch.Tensor) -> None:
    """Let `slots` take the place of the first `head` KV slots of request `index` of `batch`, which are freed.

    From then on the request owns all its slots, and its KV is no longer what its tokens name, so that SGLang must not
    insert it into the radix tree. Only if `can_replace_head`.
    """
    request, tree, pool = batch.reqs[index], scheduler.tree_cache, scheduler.req_to_token_pool
    kv, row = request.kv, pool.req_to_token[request.kv.req_pool_idx]
    replaced = torch.cat([slots.to(row.dtype), row[head : kv.kv_committed_len]])
    tree.free_kv_row(kv, [(kv.cache_protected_len, head)])
    release_prefix(tree, request, replaced.to(torch.int64))
    kv.cache_protected_len = 0
    pool.write((kv.req_pool_idx, slice(0, len(replaced))), replaced)
    request.skip_radix_cache_insert = True
    kv.kv_committed_len = kv.kv_allocated_len = len(replaced)
    _shorten(batch, index, head - len(slots))


def _shorten(batch: Any, index: int, tokens: int) -> None:
    """Subtract `tokens` from the length of one request. New tensors: a step in flight may use the old ones."""
    if not tokens:
        return
    for name in ("seq_lens", "seq_lens_cpu", "orig_seq_lens"):
        lengths = getattr(batch, name).clone()
        lengths[index] -= tokens
        setattr(batch, name, lengths)
    batch.seq_lens_sum = None
