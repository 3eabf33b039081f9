"""Compressed entries in SGLang's radix tree: selected KV is copied to new slots and inserted under the entry's name.

The tree treats it like any other entry: it is found by prefix match, locked while in use, and evicted by age. All
layers use the same slots, but each layer and head stores its own selection of tokens in them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from presift.target.sglang_plugin.states import DecodeState, ScoringState
from presift.target.sglang_plugin.transfers import keep_until_read, to_device

# The share of the KV pool that may be pinned for requests that are not admitted yet.
PINNED_SHARE = 0.25
PIN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class EntryPin:
    """A lock that keeps a new entry from being evicted before its request is admitted."""

    node: Any
    receipt: Any
    tokens: int
    expires_s: float


class EntryPins:
    """Pins by request id, oldest first, at most `max_tokens` together. `tree` is SGLang's radix cache."""

    def __init__(self, tree: Any, max_tokens: int, seconds: float = PIN_TIMEOUT_S) -> None:
        self.max_tokens = max_tokens
        # How many KV slots are pinned.
        self.tokens = 0
        self._tree = tree
        self._seconds = seconds
        self._pins: OrderedDict[str, EntryPin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pins)

    def pin(self, request_id: str, node: Any, tokens: int) -> None:
        """Lock `node` for a request. Above the cap the oldest pins are released; their entries may be built again."""
        self.release(request_id)
        receipt = self._tree.inc_lock_ref(node).to_dec_params()
        self._pins[request_id] = EntryPin(node, receipt, tokens, time.monotonic() + self._seconds)
        self.tokens += tokens
        while self.tokens > self.max_tokens and len(self._pins) > 1:
            self.release(next(iter(self._pins)))

    def release(self, request_id: str) -> None:
        """Unlock the entry of a request, if it has one."""
        pin = self._pins.pop(request_id, None)
        if pin is not None:
            self.tokens -= pin.tokens
            self._tree.dec_lock_ref(pin.node, pin.receipt)

    def release_except(self, queued: Collection[str]) -> bool:
        """Release expired pins and pins of requests that are not in `queued`. True if any was released."""
        now = time.monotonic()
        gone = [pinned for pinned, pin in self._pins.items() if pinned not in queued or pin.expires_s <= now]
        for request_id in gone:
            self.release(request_id)
        return bool(gone)

    def release_by_prefix(self, prefix: str) -> None:
        """Release the pins of all requests whose id starts with `prefix`: SGLang aborts by prefix."""
        for request_id in [pinned for pinned in self._pins if pinned.startswith(prefix)]:
            self.release(request_id)

    def clear(self) -> None:
        """Drop all pins without unlocking, because the tree was emptied."""
        self._pins.clear()
        self.tokens = 0


def publish(scheduler: Any, request: Any, state: ScoringState) -> Any | None:
    """Copy the KV that a scoring request selected into a new entry, and return the tree node of the entry.

    Returns None if the pool has no room. The KV of `request` does not change.
    """
    slots = copy_selected(scheduler, request, state)
    return None if slots is None else _insert(scheduler.tree_cache, request, state.caller, slots)


def copy_selected(scheduler: Any, request: Any, state: ScoringState) -> torch.Tensor | None:
    """Copy the KV that a scoring request selected to new slots, int64[C]. None if the pool has no room."""
    caller, tree = state.caller, scheduler.tree_cache
    slots = allocate(tree, caller.kept)
    if slots is None:
        return None
    row = scheduler.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
    source = row[: len(caller.prompt) - 1].long()
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    try:
        kept = kept_positions(state, scheduler.model_config.num_hidden_layers, source.device)
        for layer, positions in enumerate(kept):
            for buffer in (pool.get_key_buffer(layer), pool.get_value_buffer(layer)):
                _copy(buffer, positions.long().expand(buffer.shape[1], -1), source, slots.long())
    except BaseException:
        tree.token_to_kv_pool_allocator.free(slots)
        raise
    return slots


def allocate(tree: Any, tokens: int) -> torch.Tensor | None:
    """New KV slots from the beginning of a page on, int64[tokens]. None if the pool has no room.

    The last page is theirs as a whole: freeing them frees it.
    """
    from sglang.srt.mem_cache.common import evict_from_tree_cache  # noqa: PLC0415 - in the scheduler alone

    allocator = tree.token_to_kv_pool_allocator
    # SGLang rounds down.
    in_pages = -(-tokens // allocator.page_size) * allocator.page_size
    evict_from_tree_cache(tree, in_pages)
    slots: torch.Tensor | None = allocator.alloc(in_pages)
    return None if slots is None else slots[:tokens]


def _copy(buffer: torch.Tensor, kept: torch.Tensor, source: torch.Tensor, slots: torch.Tensor) -> None:
    """Copy the selected KV of one layer to the slots of the entry.

    `buffer` [slots, kv_heads, d]; `kept` int64[kv_heads, C], prompt positions; `source` int64[n - 1], the slots of the
    prompt; `slots` int64[C], the slots of the entry.
    """
    heads = torch.arange(buffer.shape[1], device=buffer.device)
    buffer[slots] = buffer[source[kept].T, heads]


def kept_positions(state: ScoringState, layers: int, device: torch.device) -> list[torch.Tensor]:
    """The prompt positions that each layer keeps, ascending: int[kv_heads or 1, C] on `device`; 1: the same in all."""
    if state.selector is not None:
        kept = [state.selector.kept[layer] for layer in range(layers)]
        for positions in kept:
            # Made in the stream of the forward pass.
            keep_until_read(positions)
        return kept
    mask = state.caller.plan.kv_mask
    if mask is None:
        raise AssertionError("the request has neither a selector nor a mask")
    # Every layer and head of a mask keeps the same number. One copy to the device for all of them.
    masked = torch.from_numpy(np.nonzero(mask.kept[..., :-1])[2].astype(np.int32).reshape(*mask.kept.shape[:2], -1))
    masked = to_device(masked, device)
    return [masked[min(layer, masked.shape[0] - 1)] for layer in range(layers)]


def _insert(tree: Any, request: Any, caller: DecodeState, slots: torch.Tensor) -> Any:
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams  # noqa: PLC0415
    from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: PLC0415

    key = RadixKey(caller.pseudo_key, caller.entry, cache_salt=request.cache_salt)
    # Eviction may go by the priority of the requests.
    parameters = InsertParams(key=key, value=slots.to(torch.int64), priority=request.priority or 0)
    # If the entry exists already, the tree keeps the old one and frees these slots.
    return tree.insert(parameters).last_device_node
