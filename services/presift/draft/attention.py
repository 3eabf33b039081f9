"""Captures the attention of a few query rows while the model runs, and reduces it at once to one value per key.

transformers can load a model with a registered attention function. This one passes queries and keys to the RowCapture
of the forward call that runs. Then it computes the layer with transformers' sdpa function or, for soft caps and sinks,
with its own code. Nothing is patched and no state is kept between calls. At most the window's rows of one layer exist
at a time: memory grows with window x n, not n x n (arXiv 2506.08373 section 4.2; design, SpecPC steps 1 to 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
from presift.draft.layer_attention import LayerAttention
from presift.draft.layers import Layers
from presift.draft.scorer import HeadReduction, check_heads

# Without "sdpa" in the name: transformers would refuse models for which its sdpa function is not enough.
IMPLEMENTATION = "presift"
# Those of the forward call that runs. Not a keyword argument, because not every model passes those to its attention.
_observers: ContextVar[Sequence[Observer]] = ContextVar("observers", default=())


def register() -> str:
    """Register the attention function with transformers; returns its name. Can be called again."""
    # Imported here because transformers must be imported after `torchvision_ops.declare_missing`.
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    AttentionInterface.register(IMPLEMENTATION, partial(_attend, stock=with_grouped_rows(sdpa_attention_forward)))
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    return IMPLEMENTATION


@dataclass(frozen=True, slots=True)
class ScoredHeads:
    """`by_layer`: the scored heads of each scored layer, None for all heads of it."""

    by_layer: Mapping[int, Sequence[int] | None]
    reduction: HeadReduction


class Observer(Protocol):
    """Sees the attention of each layer."""

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """Called before the layer's attention is computed. May raise LayersDone."""


class LayersDone(Exception):
    """Ends a forward call whose remaining layers nobody needs."""


@contextmanager
def observed_by(observers: Sequence[Observer]) -> Iterator[None]:
    """Show `observers` the attention of forward calls in this block."""
    token = _observers.set(observers)
    try:
        yield
    finally:
        _observers.reset(token)


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

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """Add one call of a layer. Raises LayersDone if no layer after this one is needed."""
        if layer in self._heads:
            self._observe(attention, layer)
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

    def _observe(self, attention: LayerAttention, layer: int) -> None:
        first = max(self._first_row, attention.keys - attention.rows)
        if first >= attention.keys:
            return
        self._rows_seen[layer] += attention.keys - first
        for position, block in attention.probabilities(first, self._heads[layer]):
            row = position - self._first_row
            weights = self._weights[row : row + block.shape[1]]
            # Generated tokens are rows, not keys.
            self._add(block.mul_(weights[:, None])[:, :, : self._n], layer)

    def _add(self, weighted: torch.Tensor, layer: int) -> None:
        """weighted: float32[heads, rows, keys]."""
        seen, sums = weighted.shape[2], weighted.sum(1)
        self._mass[:seen] += sums.sum(0)
        if self._peak is not None:
            torch.maximum(self._peak[:seen], weighted.amax((0, 1)), out=self._peak[:seen])
        if self._head_sums is not None:
            held = self._head_sums.setdefault(layer, torch.zeros(len(sums), self._n, device=sums.device))
            held[:, :seen] += sums


def scored_heads(policy: SpecPc, layers: Layers, calibrated: ScoredHeads | None) -> ScoredHeads:
    """The heads that `policy` scores in a model with these layers; `calibrated` are those of its head profile.

    Raises InvalidRequest if the model has no such layer with full attention, RouteUnsupported if it has no head
    profile.
    """
    check_heads(policy, layers.count, has_profile=calibrated is not None)
    if policy.heads is Heads.CALIBRATED and calibrated is not None:
        return calibrated
    scored = [layer for layer in layers.full if layer >= policy.start_layer]
    if not scored:
        limit = f"<= {layers.full[-1]} (the draft's last layer with full attention)"
        raise InvalidRequest("spec_pc.start_layer", policy.start_layer, limit)
    return ScoredHeads(dict.fromkeys(scored), HeadReduction(policy.reduction))


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    stock: Callable[..., Any],
    **kwargs: Any,
) -> Any:
    attention = LayerAttention.of_call(query, key, attention_mask, kwargs)
    # Configurations do not show it: BERT's layers, and Doge's, which mask by themselves and rely on a mask given.
    # Looked at in the first chunk alone, where most models have no mask: the look waits for the device.
    is_first = attention.rows == attention.keys
    if not getattr(module, "is_causal", True) or (is_first and attention.sees_later_tokens):
        raise InvalidRequest("model", type(module).__name__, "a causal decoder")
    for observer in _observers.get():
        observer.observe(int(module.layer_idx), attention)  # type: ignore[arg-type]
    if attention.is_plain:
        return stock(module, query, key, value, attention_mask, **kwargs)
    return attention.output(value), None
