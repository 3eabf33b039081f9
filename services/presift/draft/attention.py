"""Captures the attention of a few query rows while the model runs, and reduces it at once to one value per key.

transformers can load a model with a registered attention function. This one calls the stock function and passes
queries and keys to the RowCapture that the caller gave to that forward call. Nothing is patched and no state is kept
between calls. At most the window's rows of one layer exist at a time: memory grows with window x n, not n x n (arXiv
2506.08373 section 4.2; design, SpecPC steps 1 to 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from presift.core.errors import InternalError, InvalidRequest
from presift.core.importance import window_weights
from presift.core.policies import Heads, SpecPc
from presift.draft.decode_attention import with_grouped_rows
from presift.draft.scorer import HeadReduction, check_heads

# "sdpa" in the name makes transformers check that the model supports the stock function.
IMPLEMENTATION = "presift_sdpa"
# The keyword argument that carries observers through the model's forward to the attention function.
KEYWORD = "presift_observers"
# Attention is computed in blocks of rows: at most this many float32 values (32 MiB), or one row.
_BLOCK_VALUES = 2**23
# Arguments with which a model changes the probabilities in ways that the capture does not compute.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux")


def register() -> str:
    """Register the attention function with transformers; returns its name. Can be called again."""
    # Imported here because transformers must be imported after `torchvision_ops.declare_missing`.
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    AttentionInterface.register(IMPLEMENTATION, partial(_attend, with_grouped_rows(sdpa_attention_forward)))
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    return IMPLEMENTATION


@dataclass(frozen=True, slots=True)
class ScoredHeads:
    """`by_layer`: the scored heads of each scored layer, None for all heads of it."""

    by_layer: Mapping[int, Sequence[int] | None]
    reduction: HeadReduction


class Observer(Protocol):
    """Sees the queries and keys of each layer's attention."""

    def observe(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """query: [1, heads, rows, d], the new rows; key: [1, kv_heads, keys, d], all so far. May raise LayersDone."""


class LayersDone(Exception):
    """Ends a forward call whose remaining layers nobody needs."""


class RowCapture:
    """Importance of one prompt of n tokens, summed over the forward calls that read it.

    Rows are identified by position, so a chunk may end anywhere in the window. Rows after the prompt are generated
    tokens. With `stops`, a forward call ends by LayersDone after the deepest scored layer, `last_layer`.
    """

    def __init__(
        self, prompt_tokens: int, policy: SpecPc, heads: ScoredHeads, device: torch.device, *, stops: bool = False
    ) -> None:
        self._n = prompt_tokens
        self._first_row = prompt_tokens - policy.window
        self._heads = heads.by_layer
        self.last_layer = max(heads.by_layer) if stops else None
        weights = np.append(window_weights(policy.window, policy.weighted_query), np.ones(policy.lookahead_tokens - 1))
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)  # [window + m - 1]
        self._mass = torch.zeros(prompt_tokens, dtype=torch.float32, device=device)
        self._peak = torch.zeros_like(self._mass) if heads.reduction is HeadReduction.MAX else None
        self._head_sums: dict[int, torch.Tensor] | None = {} if heads.reduction is HeadReduction.HEAD_MAX else None
        self._rows_seen: Counter[int] = Counter()

    def observe(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """Add one call of a layer: query [1, heads, rows, d], the new rows; key [1, kv_heads, keys, d], all so far.

        Raises LayersDone if no layer after this one is needed.
        """
        if layer in self._heads:
            self._observe(query, key, layer)
        if layer == self.last_layer:
            raise LayersDone

    def importance(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(importance, coverage_importance), float32[n] each. Raises InternalError if rows of a layer are missing."""
        captured = dict(self._rows_seen)
        if captured.keys() != self._heads.keys() or len(set(captured.values())) != 1:
            expected = sorted(self._heads)
            raise InternalError(f"captured attention rows per layer: {captured}, expected layers {expected}")
        mass, peak = self._mass.cpu().numpy(), self._peak
        if self._head_sums is not None:
            peak = torch.stack([each.amax(0) for each in self._head_sums.values()]).amax(0)
        return (mass if peak is None else peak.cpu().numpy()), mass

    def _observe(self, query: torch.Tensor, key: torch.Tensor, layer: int) -> None:
        keys, rows = key.shape[2], query.shape[2]
        first = max(self._first_row, keys - rows)
        if first >= keys:
            return
        self._rows_seen[layer] += keys - first
        queries, scored_keys = _only(self._heads[layer], query[0, :, first - keys :], key[0])
        transposed = scored_keys.float().transpose(1, 2)
        block = max(1, _BLOCK_VALUES // (queries.shape[0] * keys))
        for start in range(0, keys - first, block):
            weighted = self._weighted(queries[:, start : start + block].float(), transposed, first + start)
            self._add(weighted, layer)

    def _weighted(self, queries: torch.Tensor, transposed: torch.Tensor, position: int) -> torch.Tensor:
        """float32[heads, rows, prompt keys]. queries: float32[heads, rows, d], the first at `position`; transposed:
        float32[kv_heads, d, keys]."""
        row = position - self._first_row
        weights = self._weights[row : row + queries.shape[1]]
        weighted = causal_attention(queries, transposed, position).mul_(weights[:, None])
        return weighted[:, :, : self._n]  # generated tokens are rows, not keys

    def _add(self, weighted: torch.Tensor, layer: int) -> None:
        """weighted: float32[heads, rows, keys]."""
        seen, sums = weighted.shape[2], weighted.sum(1)
        self._mass[:seen] += sums.sum(0)
        if self._peak is not None:
            torch.maximum(self._peak[:seen], weighted.amax((0, 1)), out=self._peak[:seen])
        if self._head_sums is not None:
            held = self._head_sums.setdefault(layer, torch.zeros(len(sums), self._n, device=sums.device))
            held[:, :seen] += sums


def scored_heads(policy: SpecPc, layers: int, calibrated: ScoredHeads | None) -> ScoredHeads:
    """The heads that `policy` scores in a model with so many layers; `calibrated` are those of its head profile.

    Raises InvalidRequest if the model has no such layer, RouteUnsupported if it has no head profile.
    """
    check_heads(policy, layers, has_profile=calibrated is not None)
    if policy.heads is Heads.CALIBRATED and calibrated is not None:
        return calibrated
    return ScoredHeads(dict.fromkeys(range(policy.start_layer, layers)), HeadReduction(policy.reduction))


def _only(heads: Sequence[int] | None, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The queries of `heads` and the keys that they share: all, or one copy of the keys for each of a few heads."""
    if heads is None:
        return query, key
    index = torch.tensor(heads, device=query.device)
    return query[index], key[index // (query.shape[0] // key.shape[0])]


def causal_attention(queries: torch.Tensor, transposed: torch.Tensor, position: int) -> torch.Tensor:
    """float32[heads, rows, keys]: softmax(q k / sqrt(d)); row r is at `position + r` and sees no later key.

    queries: float32[heads, rows, d]; transposed: float32[kv_heads, d, keys]. Heads that share keys do not copy them.
    """
    (heads, rows, d), (kv_heads, _, keys) = queries.shape, transposed.shape
    grouped = queries.mul(1 / math.sqrt(d)).reshape(kv_heads, -1, d)
    scores = torch.bmm(grouped, transposed).view(heads, rows, keys)
    newest = keys - position
    later = torch.ones(rows, newest, dtype=torch.bool, device=queries.device).triu(1)
    scores[:, :, position:].masked_fill_(later, -math.inf)
    return torch.softmax(scores, dim=-1)


def _attend(
    stock: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    *args: Any,
    presift_observers: Sequence[Observer] = (),
    **kwargs: Any,
) -> Any:
    if presift_observers:
        _check_variant(query, kwargs)
    for observer in presift_observers:
        observer.observe(int(module.layer_idx), query, key)  # type: ignore[arg-type]
    return stock(module, query, key, *args, **kwargs)


def _check_variant(query: torch.Tensor, kwargs: dict[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise InvalidRequest("model", f"attention with {name}", "full causal attention")
    scaling, plain = kwargs.get("scaling"), 1 / math.sqrt(query.shape[-1])
    if scaling is not None and not math.isclose(scaling, plain, rel_tol=1e-6):
        raise InvalidRequest("model", f"attention scaled by {scaling}", f"1/sqrt(head_dim) ({plain})")
