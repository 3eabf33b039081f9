"""Compressed entries in SGLang's radix tree: selected KV is copied to slots of its own and inserted under its name.

From then on it is an entry like any other: found by prefix match, locked while in use, evicted when it is the oldest.
All layers share the slots; which token's KV lies in one differs by layer and head.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from presift.target.sglang_plugin.states import DecodeState, ScoringState

# Of the pool, how much may be held for requests that are not admitted yet.
LEASED_SHARE = 0.25
LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class EntryPin:
    """A lock on an entry until its request is admitted, so that it is not evicted before it was ever used."""

    node: Any
    receipt: Any
    tokens: int
    expires_s: float


class EntryPins:
    """The leases of requests by id, oldest first, under a cap of tokens. `tree` is SGLang's radix cache."""

    def __init__(self, tree: Any, max_tokens: int, seconds: float = LEASE_S) -> None:
        self._tree = tree
        self._max_tokens = max_tokens
        self._seconds = seconds
        self._held: OrderedDict[str, EntryPin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def tokens(self) -> int:
        return sum(lease.tokens for lease in self._held.values())

    def take(self, request_id: str, node: Any, tokens: int) -> None:
        """Lock `node` for a request. Over the cap the oldest go: their requests will have their entries made again."""
        self.release(request_id)
        receipt = self._tree.inc_lock_ref(node).to_dec_params()
        self._held[request_id] = EntryPin(node, receipt, tokens, time.monotonic() + self._seconds)
        while self.tokens > self._max_tokens and len(self._held) > 1:
            self.release(next(iter(self._held)))

    def release(self, request_id: str) -> None:
        """Unlock what a request holds, if anything."""
        lease = self._held.pop(request_id, None)
        if lease is not None:
            self._tree.dec_lock_ref(lease.node, lease.receipt)

    def release_except(self, queued: Collection[str]) -> bool:
        """Release those that expired, and those of requests that are not among `queued`; True if there were any."""
        now = time.monotonic()
        gone = [held for held, lease in self._held.items() if held not in queued or lease.expires_s <= now]
        for request_id in gone:
            self.release(request_id)
        return bool(gone)

    def release_matching(self, prefix: str) -> None:
        """Those of all requests whose id begins so: SGLang aborts by prefix."""
        for request_id in [held for held in self._held if held.startswith(prefix)]:
            self.release(request_id)

    def forget(self) -> None:
        """The tree is emptied: there is nothing to unlock any more."""
        self._held.clear()


def publish(scheduler: Any, request: Any, state: ScoringState) -> Any | None:
    """The tree node of the entry that `request` (which has just been read, and scored) makes; None if there is no room.

    The request's own KV stays as it is.
    """
    compressed, tree = state.of, scheduler.tree_cache
    slots = _allocate(tree, compressed.kept)
    if slots is None:
        return None
    row = scheduler.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
    source = row[: len(compressed.prompt) - 1].long()
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    try:
        for layer in range(scheduler.model_config.num_hidden_layers):
            keys, values = pool.get_key_buffer(layer), pool.get_value_buffer(layer)
            kept = kept_positions(state, layer, keys)
            for buffer in (keys, values):
                _copy(buffer, kept, source, slots.long())
    except BaseException:
        tree.token_to_kv_pool_allocator.free(slots)
        raise
    return _insert(tree, compressed, slots, request.cache_salt)


def _allocate(tree: Any, tokens: int) -> torch.Tensor | None:
    from sglang.srt.mem_cache.common import evict_from_tree_cache  # noqa: PLC0415 - in the scheduler alone

    evict_from_tree_cache(tree, tokens)
    slots: torch.Tensor | None = tree.token_to_kv_pool_allocator.alloc(tokens)
    return slots


def _copy(buffer: torch.Tensor, kept: torch.Tensor, source: torch.Tensor, slots: torch.Tensor) -> None:
    """Copy what each head keeps (`kept` int64[kv_heads, C]) within a layer's `buffer` [slots, kv_heads, d], from the
    prompt's slots, `source` int64[n - 1], to `slots` int64[C].
    """
    heads = torch.arange(buffer.shape[1], device=buffer.device)
    buffer[slots] = buffer[source[kept].T, heads]


def kept_positions(state: ScoringState, layer: int, buffer: torch.Tensor) -> torch.Tensor:
    """int64[kv_heads, C], ascending: the prompt positions that each head of `layer` keeps."""
    if state.scores is not None:
        return state.scores.kept[layer].long()
    mask = state.of.plan.kv_mask
    if mask is None:
        raise AssertionError("neither scores nor a mask")
    flags = torch.from_numpy(mask.kept[min(layer, mask.kept.shape[0] - 1), :, :-1].copy())
    return flags.nonzero()[:, 1].view(flags.shape[0], -1).expand(buffer.shape[1], -1).to(buffer.device)


def _insert(tree: Any, compressed: DecodeState, slots: torch.Tensor, salt: str | None) -> Any:
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams  # noqa: PLC0415
    from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: PLC0415

    key = RadixKey(compressed.pseudo_key, compressed.entry, cache_salt=salt)
    # Had another request made it meanwhile, the tree would keep that one and free these slots.
    return tree.insert(InsertParams(key=key, value=slots.to(torch.int64))).last_device_node
