"""Which KV pairs SpecKV keeps, chosen by the target's own queries while it reads (paper section 4.1, steps 2 to 5).

The torch twin of `core.kv_selection`, for prompts that arrive in chunks and under a memory bound: no float32 tensor is
larger than BLOCK_BYTES or than one head's keys, and of a layer whose rows are not all there only their queries wait.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from presift.core.masks import KvMask
from presift.core.policies import Pool, Reduction, SpecKv

# Rows are taken in blocks whose scores against all keys fit this.
BLOCK_BYTES = 64 << 20


@dataclass(slots=True, eq=False)
class _Sums:
    """What rows have said about one layer's keys. `importance` (reduced as the policy says) and `mass` (summed):
    float32[kv_heads, prefix]; `rest`: float32[kv_heads], the mass on the prompt tokens that are kept anyway.
    """

    importance: torch.Tensor
    mass: torch.Tensor
    rest: torch.Tensor


@dataclass(slots=True, eq=False)
class KvSelector:
    """The selection of one prompt, layer by layer. `protected`: bool[prefix], True for tokens that are kept anyway.

    The scoring rows are the positions `first_row <= i < end_row` of prompt and lookahead; the `first_row` keys before
    them, the prefix, compete. Of a layer only indices stay, once its last row was seen.
    """

    policy: SpecKv
    prompt_tokens: int
    lookahead_tokens: int
    kept_tokens: int
    layers: int
    protected: torch.Tensor
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    ms: float = 0.0
    _waiting: dict[int, torch.Tensor] = field(default_factory=dict)
    _shares: list[torch.Tensor] = field(default_factory=list)

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
    def coverage(self) -> float | None:
        """The share of the rows' attention on prompt tokens that falls on kept ones, over all layers and heads."""
        if not self._shares:
            return None
        held, total = torch.stack(self._shares).double().sum(0)
        return float(held / total)

    @property
    def mask(self) -> KvMask:
        """What is kept, of this process's heads: [layers, kv_heads, n]; the final prompt token is read again."""
        kept = torch.stack([self.kept[layer] for layer in range(self.layers)]).long().cpu()
        flags = torch.zeros(*kept.shape[:2], self.prompt_tokens, dtype=torch.bool)
        flags.scatter_(2, kept, True)
        flags[..., -1] = True
        return KvMask(flags.numpy())

    def restart(self) -> None:
        """Forget what was seen: the prompt is read anew."""
        self.kept.clear()
        self._waiting.clear()
        self._shares.clear()
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
        """Score the rows from position `first` on: `queries` [rows, heads, d], `keys` [first + rows, kv_heads, d],
        both rotated, of any dtype. `slots` int64[first + rows] says where in `keys` they lie, if not in order.
        """
        started = time.perf_counter()
        if layer in self._waiting:
            earlier = self._waiting.pop(layer)
            queries, first = torch.cat([earlier, queries]), first - earlier.shape[0]
        if first != self.first_row:
            raise ValueError(f"rows from position {first} on, not from {self.first_row}: some were not scored")
        if first + queries.shape[0] < self.end_row:
            # The rows of a chunk are few; what they say about all keys is a thousand times that.
            self._waiting[layer] = queries.clone()
        else:
            self._close(layer, self._sums(queries, first, keys, scaling, slots))
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

    def _close(self, layer: int, sums: _Sums) -> None:
        pooled = _pooled(sums.importance, self.policy)
        ranked = pooled.masked_fill(self.protected.to(pooled.device), torch.inf)
        places = self.kept_tokens - self.policy.window
        # Stable: of equal ones the earlier wins, here and in the reference.
        chosen = ranked.sort(dim=1, descending=True, stable=True).indices[:, :places].sort(dim=1).values
        held = sums.mass.gather(1, chosen).sum() + sums.rest.sum()
        self._shares.append(torch.stack([held, sums.mass.sum() + sums.rest.sum()]))
        window = torch.arange(self.first_row, self.prompt_tokens - 1, device=chosen.device)
        self.kept[layer] = torch.cat([chosen, window.expand(chosen.shape[0], -1)], dim=1).int()


def _blocks(queries: torch.Tensor, keys: int) -> list[tuple[int, torch.Tensor]]:
    rows = max(1, BLOCK_BYTES // (4 * keys * queries.shape[1]))
    return [(start, queries[start : start + rows]) for start in range(0, queries.shape[0], rows)]


def _softmax(block: torch.Tensor, first: int, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """float32[rows * group, keys]: causal attention of `block` [rows, group, d], whose first row is at `first`."""
    rows, group, _ = block.shape
    logits = torch.matmul(block.reshape(rows * group, -1).float(), keys.T).mul_(scaling)
    positions = torch.arange(first, first + rows, device=keys.device).repeat_interleave(group)
    # Only from `first` on is there anything that a row may not see.
    later = torch.arange(first, keys.shape[0], device=keys.device) > positions[:, None]
    logits[:, first:].masked_fill_(later, -torch.inf)
    logits.sub_(logits.amax(1, keepdim=True)).exp_()
    return logits.div_(logits.sum(1, keepdim=True))


def _pooled(importance: torch.Tensor, policy: SpecKv) -> torch.Tensor:
    """The same shape, smoothed along the sequence; zero padding counts for the mean, never for the maximum."""
    if policy.pool is Pool.NONE or policy.kernel == 1:
        return importance
    pool = max_pool1d if policy.pool is Pool.MAX else avg_pool1d
    return pool(importance[None], policy.kernel, stride=1, padding=policy.kernel // 2)[0]
