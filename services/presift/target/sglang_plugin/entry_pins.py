"""Compressed entries in SGLang's radix tree: selected KV is copied to new slots and inserted under the entry's name.

The tree treats it like any other entry: it is found by prefix match, locked while in use, and evicted by age. All
layers use the same slots, but each layer and head stores its own selection of tokens in them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from presift.core.kv_plan import KvPlan
from presift.core.masks import KvMask
from presift.target.sglang_plugin.kv_selector import coverage_of
from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.states import DecodeState, ScoringState
from presift.target.sglang_plugin.transfers import keep_until_read, to_device
from presift.target.sglang_plugin.verified_lookahead import accepted

# The share of the KV pool that may be pinned for requests that are not admitted yet.
PINNED_SHARE = 0.25
# For how many steps of the scheduler. Not seconds: with tensor parallelism every rank must release it in the same step.
PIN_STEPS = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EntryPin:
    """A lock that keeps a new entry from being evicted before its request is admitted."""

    node: Any
    receipt: Any
    tokens: int
    expires_step: int


class EntryPins:
    """Pins by request id, oldest first, at most `max_tokens` together. `tree` is SGLang's radix cache."""

    def __init__(self, tree: Any, max_tokens: int, steps: int = PIN_STEPS) -> None:
        self.max_tokens = max_tokens
        # How many KV slots are pinned.
        self.tokens = 0
        self._tree = tree
        self._steps = steps
        self._step = 0
        self._pins: OrderedDict[str, EntryPin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pins)

    def count_step(self) -> None:
        """Count a step of the scheduler, by which pins expire."""
        self._step += 1

    def pin(self, request_id: str, node: Any, tokens: int) -> None:
        """Lock `node` for a request. Above the cap the oldest pins are released; their entries may be built again."""
        self.release(request_id)
        receipt = self._tree.inc_lock_ref(node).to_dec_params()
        self._pins[request_id] = EntryPin(node, receipt, tokens, self._step + self._steps)
        self.tokens += tokens
        while self.tokens > self.max_tokens and len(self._pins) > 1:
            self.release(next(iter(self._pins)))

    def release(self, request_id: str) -> None:
        """Unlock the entry of a request, if it has one."""
        pin = self._pins.pop(request_id, None)
        if pin is not None:
            self.tokens -= pin.tokens
            self._tree.dec_lock_ref(pin.node, pin.receipt)

    def release_except(self, queued: Container[str]) -> bool:
        """Release expired pins and pins of requests that are not in `queued`. True if any was released."""
        gone = [pinned for pinned, pin in self._pins.items() if pinned not in queued or pin.expires_step <= self._step]
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


@dataclass(frozen=True, slots=True, eq=False)
class SelectedCopy:
    """A copy of the KV that a scoring request selected, the same on all ranks but for the KV itself.

    `slots` int64[C]: the new slots; None if the pool has no room, or on a `failure` of any rank. `kv_mask`, if asked
    for, and `coverage` are those of all heads. `accepted`: with which tokens of the lookahead an answer begins.
    """

    slots: torch.Tensor | None
    failure: str | None = None
    coverage: float | None = None
    accepted: tuple[int, ...] = ()
    kv_mask: KvMask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _RankResult:
    """One rank's result: a failure, or what its heads selected."""

    failure: str | None = None
    attention: tuple[float, float] | None = None
    choices: list[tuple[float, int]] = field(default_factory=list)
    kv_mask: KvMask | None = None


def copy_selected(scheduler: Any, request: Any, state: ScoringState, ranks: Ranks) -> SelectedCopy:
    """Copy the KV that a scoring request selected to new slots, on every rank or, if one fails, on none.

    The KV of `request` does not change. An error of one rank is logged there and is the failure of all, because an
    exception would end the scheduler and with it all other requests.
    """
    tree = scheduler.tree_cache
    # Before what may fail on one rank alone: all ranks must evict the same.
    slots = allocate(tree, state.caller.kept)
    try:
        own = _copy_and_describe(scheduler, request, state, slots, ranks)
    except Exception as error:
        log.exception("presift: copying selected KV failed")
        own = _RankResult(f"copying the selected KV failed: {type(error).__name__}")
    results: list[_RankResult] = ranks.gather(own)
    failure = next((each.failure for each in results if each.failure is not None), None)
    if failure is not None or slots is None:
        if slots is not None:
            tree.token_to_kv_pool_allocator.free(slots)
        return SelectedCopy(None, failure)
    tokens = () if state.lookahead is None else state.lookahead.tokens
    return SelectedCopy(
        slots,
        coverage=coverage_of([each.attention for each in results]),
        accepted=accepted(tokens, [each.choices for each in results]),
        kv_mask=_reported_mask(state.caller.plan, [each.kv_mask for each in results]),
    )


def _copy_and_describe(
    scheduler: Any, request: Any, state: ScoringState, slots: torch.Tensor | None, ranks: Ranks
) -> _RankResult:
    selector, lookahead = state.selector, state.lookahead
    if selector is not None and not selector.is_complete:
        return _RankResult("KV selection did not see every layer; check the attention backend")
    if slots is None:
        return _RankResult()
    row = scheduler.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
    source = row[: len(state.caller.prompt) - 1].long()
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    kept = kept_positions(state, scheduler.model_config.num_hidden_layers, source.device, ranks)
    for layer, positions in enumerate(kept):
        for buffer in (pool.get_key_buffer(layer), pool.get_value_buffer(layer)):
            _copy(buffer, positions.long().expand(buffer.shape[1], -1), source, slots.long())
    return _RankResult(
        attention=None if selector is None else selector.attention,
        choices=[] if lookahead is None else lookahead.choices(),
        kv_mask=selector.mask if selector is not None and selector.reports_mask else None,
    )


def _reported_mask(plan: KvPlan, selected: list[KvMask | None]) -> KvMask | None:
    """What all heads keep, if the request asks for it. `selected`: what each rank's heads do, unless `plan` says it."""
    if not plan.report_kept:
        return None
    if plan.kv_mask is not None:
        return plan.kv_mask
    return KvMask(np.concatenate([mask.kept for mask in selected if mask is not None], axis=1))


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


def kept_positions(state: ScoringState, layers: int, device: torch.device, ranks: Ranks = ALONE) -> list[torch.Tensor]:
    """The prompt positions that each layer keeps in this rank's heads, ascending: int[kv_heads or 1, C] on `device`.

    1: the same in all heads.
    """
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
    kept_flags = mask.kept[:, ranks.own_heads(mask.kept.shape[1]), :-1]
    masked = torch.from_numpy(np.nonzero(kept_flags)[2].astype(np.int32).reshape(*kept_flags.shape[:2], -1))
    masked = to_device(masked, device)
    return [masked[min(layer, masked.shape[0] - 1)] for layer in range(layers)]


def insert_entry(tree: Any, request: Any, caller: DecodeState, slots: torch.Tensor) -> Any:
    """Insert the entry of `caller` into the tree, and return its node. `slots` int64[C]: its KV."""
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams  # noqa: PLC0415
    from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: PLC0415

    key = RadixKey(caller.pseudo_key, caller.entry, cache_salt=request.cache_salt)
    # Eviction may go by the priority of the requests.
    parameters = InsertParams(key=key, value=slots.to(torch.int64), priority=request.priority or 0)
    # If the entry exists already, the tree keeps the old one and frees these slots.
    return tree.insert(parameters).last_device_node
