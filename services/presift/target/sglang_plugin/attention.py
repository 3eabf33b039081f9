"""What a forward pass shows the plugin: positions go in, queries come out.

SGLang copies its forward batch, so nothing can be put on it; what a pass is to be scored for is noted when the batch is
made and read when attention runs, in the same thread, one pass at a time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from presift.target.sglang_plugin.kv_selector import KvSelector
from presift.target.sglang_plugin.states import DecodeState, ScoringState, state_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Scoring rows among the queries of a pass: `queries[start:end]` are the positions from `first` on; `slots`
    int64[first + rows] hold the keys.
    """

    scores: KvSelector
    start: int
    end: int
    first: int
    slots: torch.Tensor


class Pass:
    """The forward pass under way."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []
        self._pool: Any = None

    @property
    def is_plain(self) -> bool:
        """Nobody's queries are wanted."""
        return not self._rows

    def begin(self, forward: Any, batch: Any, runner: Any) -> None:
        """Move positions past what was dropped; note whose queries are wanted. `forward` is the new ForwardBatch."""
        states = [state_of(request) for request in batch.reqs]
        self._rows, self._pool = [], runner.token_to_kv_pool
        if not any(states) or forward.positions is None:
            return
        shifts = [state.shift if isinstance(state, DecodeState) else 0 for state in states]
        if any(shifts):
            forward.positions = forward.positions + _per_token(shifts, forward, batch)
        if forward.forward_mode.is_extend():
            self._rows = _rows(states, batch, runner.req_to_token_pool.req_to_token)

    def attended(self, queries: torch.Tensor, layer: Any) -> None:
        """Attention ran in `layer` with `queries` [tokens, heads * d], rotated; the keys are in the pool."""
        for rows in list(self._rows):
            try:
                self._score(rows, queries, layer)
            except Exception:
                # The pass serves other requests too. What was not scored is noticed when its entry is to be made.
                log.exception("presift: a layer could not be scored")
                self._rows.remove(rows)

    def _score(self, rows: Rows, queries: torch.Tensor, layer: Any) -> None:
        taken = queries[rows.start : rows.end].view(rows.end - rows.start, layer.tp_q_head_num, layer.qk_head_dim)
        keys = self._pool.get_key_buffer(layer.layer_id)
        rows.scores.add(layer.layer_id, taken, rows.first, keys, layer.scaling, slots=rows.slots)


def _per_token(shifts: list[int], forward: Any, batch: Any) -> torch.Tensor:
    values = torch.tensor(shifts, dtype=forward.positions.dtype)
    if not forward.forward_mode.is_decode_or_idle():
        values = values.repeat_interleave(torch.tensor(list(batch.extend_lens)))
    # Beam search puts rows behind those of the requests; they are none of ours.
    values = torch.nn.functional.pad(values, (0, forward.positions.numel() - values.numel()))
    return values.to(forward.positions.device, non_blocking=True)


def _rows(states: list[Any], batch: Any, req_to_token: torch.Tensor) -> list[Rows]:
    found, offset = [], 0
    for state, request, prefix, length in zip(states, batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
        if isinstance(state, ScoringState) and state.scores is not None:
            first, end = max(prefix, state.scores.first_row), min(prefix + length, state.scores.end_row)
            if first < end:
                start = offset + first - prefix
                slots = req_to_token[request.kv.req_pool_idx, :end].long()
                found.append(Rows(state.scores, start, start + end - first, first, slots))
        offset += length
    return found
