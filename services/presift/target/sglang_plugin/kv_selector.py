"""Selects the KV pairs that SpecKV keeps, by the target's own queries during prefill (paper section 4.1, steps 2 to 5).

The torch twin of `tests/reference/kv_selection.py`, for prompts read in chunks. Memory is bounded: no float32
tensor is larger than BLOCK_BYTES or one head's keys, and a layer with missing rows stores only the
queries of the rows seen so far.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from presift.core.masks import KvMask
from presift.core.policies import Pool, Reduction, SpecKv
from presift.target.sglang_plugin.transfers import HostCopy, to_device

# Scoring rows are processed in blocks whose scores against all keys fit into this.
BLOCK_BYTES = 64 << 20


@dataclass(slots=True, eq=False)
class _Sums:
    """The attention of the scoring rows in one layer.

    `importance` float32[kv_heads, prefix], reduced as the policy says; `mass` float32[kv_heads, prefix], summed; `rest`
    float32[kv_heads], the mass on the prompt tokens that are kept in any case.
    """

    importance: torch.Tensor
    mass: torch.Tensor
    rest: torch.Tensor


@dataclass(slots=True, eq=False)
class KvSelector:
    """The KV selection of one prompt, layer by layer. `protected`: bool[prefix], True for tokens that are always kept.

    The scoring rows are the positions `first_row <= i < end_row` of prompt and lookahead. They rank the `first_row`
    keys before them, the prefix. After a layer's last row, only the selected indices are stored. After the last layer,
    coverage and, if `reports_mask`, the indices are on their way to the host.
    """

    policy: SpecKv
    prompt_tokens: int
    lookahead_tokens: int
    kept_tokens: int
    layers: int
    protected: torch.Tensor
    reports_mask: bool = False
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    ms: float = 0.0
    _pending: dict[int, torch.Tensor] = field(default_factory=dict)
    _shares: list[torch.Tensor] = field(default_factory=list)
    _totals: HostCopy | None = None
    _kept_on_host: HostCopy | None = None

    @property
    def first_row(self) -> int:
        return self.prompt_tokens - 1 - self.policy.window

    @property
    def end_row(self) -> int:
        return self.prompt_tokens + self.lookahead_tokens

    @property
    def is_complete(self) -> bool:
        return len(self.kept) == self.layers

    @property
    def attention(self) -> tuple[float, float] | None:
        """The rows' attention to kept prompt tokens, and to all of them, as sums over layers and heads.

        None until the selection is complete.
        """
        if self._totals is None:
            return None
        held, total = self._totals.values.tolist()
        return held, total

    @property
    def mask(self) -> KvMask:
        """The kept KV as [layers, kv_heads, n]. The final prompt token counts as kept: the target reads it again.

        Only of a complete selection that `reports_mask`.
        """
        if self._kept_on_host is None:
            raise AssertionError("the kept KV was not copied to the host")
        kept = self._kept_on_host.values.long()
        flags = torch.zeros(*kept.shape[:2], self.prompt_tokens, dtype=torch.bool)
        flags.scatter_(2, kept, True)
        flags[..., -1] = True
        return KvMask(flags.numpy())

    def reset(self) -> None:
        """Start over, because the prompt is read again."""
        self.kept.clear()
        self._pending.clear()
        self._shares.clear()
        self._totals = self._kept_on_host = None
        self.ms = 0.0

    def add(
        self,
        layer: int,
        queries: torch.Tensor,
        first: int,
        keys: torch.Tensor,
        scaling: float,
        *,
        slots: torch.Tensor | None = None,
    ) -> None:
        """Add the scoring rows from position `first` on. Raises ValueError if rows before them are missing, or if the
        layer had all of its rows: neither selection is trusted then.

        `queries` [rows, heads, d] and `keys` [first + rows, kv_heads, d], both rotated, of any dtype; `slots`
        int64[first + rows]: where in `keys` the keys lie, None if in order.
        """
        started = time.perf_counter()
        if layer in self.kept:
            del self.kept[layer]
            raise ValueError(f"layer {layer} was scored twice")
        if layer in self._pending:
            earlier = self._pending.pop(layer)
            queries, first = torch.cat([earlier, queries]), first - earlier.shape[0]
        if first != self.first_row:
            raise ValueError(f"scoring rows start at position {first}, expected {self.first_row}: rows are missing")
        if first + queries.shape[0] < self.end_row:
            # Queries of the few rows of a chunk take a thousandth of the memory of their scores.
            self._pending[layer] = queries.clone()
        else:
            self._select(layer, self._sums(queries, first, keys, scaling, slots))
            if self.is_complete:
                self._copy_results()
        self.ms += (time.perf_counter() - started) * 1e3

    def _sums(
        self, queries: torch.Tensor, first: int, keys: torch.Tensor, scaling: float, slots: torch.Tensor | None
    ) -> _Sums:
        sums = self._empty(keys)
        group = queries.shape[1] // keys.shape[1]
        for head in range(keys.shape[1]):
            head_keys = (keys[:, head] if slots is None else keys[:, head].index_select(0, slots)).float()
            for start, block in _blocks(queries[:, head * group : (head + 1) * group], head_keys.shape[0]):
                self._add_weights(sums, head, _softmax(block, first + start, head_keys, scaling))
        return sums

    def _empty(self, keys: torch.Tensor) -> _Sums:
        shape = (keys.shape[1], self.first_row)
        zeros = torch.zeros(shape, dtype=torch.float32, device=keys.device)
        rest = torch.zeros(keys.shape[1], dtype=torch.float32, device=keys.device)
        return _Sums(zeros, zeros if self.policy.reduction is Reduction.SUM else zeros.clone(), rest)

    def _add_weights(self, sums: _Sums, head: int, weights: torch.Tensor) -> None:
        prefix = weights[:, : self.first_row]
        sums.mass[head] += prefix.sum(0)
        sums.rest[head] += weights[:, self.first_row : self.prompt_tokens].sum()
        if self.policy.reduction is Reduction.MAX:
            torch.maximum(sums.importance[head], prefix.amax(0), out=sums.importance[head])

    def _select(self, layer: int, sums: _Sums) -> None:
        pooled = _pooled(sums.importance, self.policy)
        # Once for all layers: a copy waits for nothing, but takes a launch.
        self.protected = to_device(self.protected, pooled.device)
        ranked = pooled.masked_fill(self.protected, torch.inf)
        places = self.kept_tokens - self.policy.window
        # Stable, as in the reference: of equal importance the earlier token wins.
        chosen = ranked.sort(dim=1, descending=True, stable=True).indices[:, :places].sort(dim=1).values
        held = sums.mass.gather(1, chosen).sum() + sums.rest.sum()
        self._shares.append(torch.stack([held, sums.mass.sum() + sums.rest.sum()]))
        window = torch.arange(self.first_row, self.prompt_tokens - 1, device=chosen.device)
        self.kept[layer] = torch.cat([chosen, window.expand(chosen.shape[0], -1)], dim=1).int()

    def _copy_results(self) -> None:
        self._totals = HostCopy(torch.stack(self._shares).double().sum(0))
        if self.reports_mask:
            self._kept_on_host = HostCopy(torch.stack([self.kept[layer] for layer in range(self.layers)]))


def coverage_of(attentions: Sequence[tuple[float, float] | None]) -> float | None:
    """The coverage of selections in different heads of one prompt, by their `attention`. None if one is unknown."""
    known = [each for each in attentions if each is not None]
    if len(known) < len(attentions):
        return None
    return sum(held for held, _ in known) / sum(total for _, total in known)


def _blocks(queries: torch.Tensor, keys: int) -> list[tuple[int, torch.Tensor]]:
    rows = max(1, BLOCK_BYTES // (4 * keys * queries.shape[1]))
    return [(start, queries[start : start + rows]) for start in range(0, queries.shape[0], rows)]


def _softmax(block: torch.Tensor, first: int, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """float32[rows * group, keys]: causal attention of `block` [rows, group, d], whose first row is at `first`."""
    rows, group, _ = block.shape
    logits = torch.matmul(block.reshape(rows * group, -1).float(), keys.T).mul_(scaling)
    positions = torch.arange(first, first + rows, device=keys.device).repeat_interleave(group)
    # Causal: only keys from `first` on can be later than a row.
    later = torch.arange(first, keys.shape[0], device=keys.device) > positions[:, None]
    logits[:, first:].masked_fill_(later, -torch.inf)
    logits.sub_(logits.amax(1, keepdim=True)).exp_()
    return logits.div_(logits.sum(1, keepdim=True))


def _pooled(importance: torch.Tensor, policy: SpecKv) -> torch.Tensor:
    """`importance` pooled along the sequence. Zero padding counts for the mean, not for the maximum."""
    if policy.pool is Pool.NONE or policy.kernel == 1:
        return importance
    pool = max_pool1d if policy.pool is Pool.MAX else avg_pool1d
    return pool(importance[None], policy.kernel, stride=1, padding=policy.kernel // 2)[0]
