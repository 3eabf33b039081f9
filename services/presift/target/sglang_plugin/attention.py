"""What the plugin does in a forward pass: it shifts positions past dropped KV, captures the scoring queries, notes
which tokens the target finds most likely after the lookahead's, and counts the KV that decode steps hold.

SGLang copies its forward batch, so state cannot be stored on it. It is noted here when the batch is made and read when
attention runs, in the same thread, one pass at a time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from presift.target.sglang_plugin.kv_selector import KvSelector
from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, ScoringState, state_of
from presift.target.sglang_plugin.transfers import to_device
from presift.target.sglang_plugin.verified_lookahead import VerifiedLookahead, most_likely

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ScoringRows:
    """The scoring rows of one request: `queries[start:end]` are its positions from `first` on.

    `slots` int64[first + rows]: the pool slots of its keys.
    """

    selector: KvSelector
    start: int
    end: int
    first: int
    slots: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LookaheadRows:
    """The rows of one request that predict its lookahead: `states[start:end]` are its positions from `first` on."""

    lookahead: VerifiedLookahead
    start: int
    end: int
    first: int


class ForwardPass:
    """The current forward pass."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._rows: list[ScoringRows] = []
        self._predicting: list[LookaheadRows] = []
        self._pool: Any = None

    @property
    def has_scoring_rows(self) -> bool:
        """Whether KV selection needs queries of this pass."""
        return bool(self._rows)

    @property
    def has_lookahead_rows(self) -> bool:
        """Whether this pass computes rows that predict a lookahead."""
        return bool(self._predicting)

    def begin(self, forward: Any, batch: Any, runner: Any) -> None:
        """Shift the positions of `forward`, the new ForwardBatch, past dropped KV; note which rows select KV."""
        states = [state_of(request) for request in batch.reqs]
        self._rows, self._predicting, self._pool = [], [], runner.token_to_kv_pool
        if not any(states) or forward.positions is None:
            return
        shifts = [state.shift if isinstance(state, DecodeState) else 0 for state in states]
        if any(shifts):
            forward.positions = forward.positions + _per_token(shifts, forward, batch)
        try:
            self._note(states, forward, batch, runner)
        except Exception:
            # The pass serves other requests too, and positions are right. Selections without these rows fail in
            # `finish_scoring`, on all ranks.
            log.exception("presift: noting what a forward pass computes failed")
            self._rows, self._predicting = [], []

    def _note(self, states: list[Any], forward: Any, batch: Any, runner: Any) -> None:
        if forward.forward_mode.is_decode_or_idle():
            _count_steps(states, batch)
        if forward.forward_mode.is_extend():
            self._rows = _rows(states, batch, runner.req_to_token_pool.req_to_token)
            self._predicting = _predicting(states, batch)

    def on_attention(self, queries: torch.Tensor, layer: Any) -> None:
        """Select KV in `layer` by `queries` [tokens, heads * d], which are rotated. The keys are in the pool.

        After the last layer nothing of the selections is held here: their requests free it.
        """
        for rows in list(self._rows):
            try:
                self._score(rows, queries, layer)
            except Exception:
                # The pass serves other requests too. This one fails in `finish_scoring`: its selector stays incomplete.
                log.exception("presift: selecting KV in a layer failed")
                self._rows.remove(rows)
                continue
            if layer.layer_id == rows.selector.layers - 1:
                self._rows.remove(rows)

    def on_logits(self, processor: Any, states: torch.Tensor, head: Any, metadata: Any) -> None:
        """Note the most likely tokens after those of the lookaheads. `states` [tokens, width]: the last layer's."""
        predicting, self._predicting = self._predicting, []
        for rows in predicting:
            try:
                choices = most_likely(processor, states[rows.start : rows.end], head, metadata, self._ranks)
                rows.lookahead.add(rows.first, choices)
            except Exception:
                # The pass serves other requests too. The rows stay missing, and nothing from there on is accepted.
                log.exception("presift: verifying a lookahead failed")

    def _score(self, rows: ScoringRows, queries: torch.Tensor, layer: Any) -> None:
        taken = queries[rows.start : rows.end].view(rows.end - rows.start, layer.tp_q_head_num, layer.qk_head_dim)
        keys = self._pool.get_key_buffer(layer.layer_id)
        rows.selector.add(layer.layer_id, taken, rows.first, keys, layer.scaling, slots=rows.slots)


def _count_steps(states: list[Any], batch: Any) -> None:
    for state, kv_tokens in zip(states, batch.seq_lens_cpu.tolist(), strict=False):
        if isinstance(state, DecodeState | PassthroughState) and state.report is not None:
            state.report.count_step(kv_tokens)


def _per_token(shifts: list[int], forward: Any, batch: Any) -> torch.Tensor:
    values = torch.tensor(shifts, dtype=forward.positions.dtype)
    if not forward.forward_mode.is_decode_or_idle():
        values = values.repeat_interleave(torch.tensor(list(batch.extend_lens)))
    # Beam search adds rows behind those of the requests, which need no change.
    values = torch.nn.functional.pad(values, (0, forward.positions.numel() - values.numel()))
    return to_device(values, forward.positions.device)


def _rows(states: list[Any], batch: Any, req_to_token: torch.Tensor) -> list[ScoringRows]:
    found, offset = [], 0
    for state, request, prefix, length in zip(states, batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
        if isinstance(state, ScoringState) and state.selector is not None:
            first, end = max(prefix, state.selector.first_row), min(prefix + length, state.selector.end_row)
            if first < end:
                start = offset + first - prefix
                slots = req_to_token[request.kv.req_pool_idx, :end].long()
                found.append(ScoringRows(state.selector, start, start + end - first, first, slots))
        offset += length
    return found


def _predicting(states: list[Any], batch: Any) -> list[LookaheadRows]:
    found, offset = [], 0
    for state, prefix, length in zip(states, batch.prefix_lens, batch.extend_lens, strict=True):
        if isinstance(state, ScoringState) and (lookahead := state.lookahead) is not None:
            first, end = max(prefix, lookahead.first_row), min(prefix + length, lookahead.end_row)
            if first < end:
                start = offset + first - prefix
                found.append(LookaheadRows(lookahead, start, start + end - first, first))
        offset += length
    return found
