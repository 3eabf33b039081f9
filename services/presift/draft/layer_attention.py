"""One call of one layer's attention, with all that the model does to its probabilities.

Scores are scaled, soft-capped (Gemma 2), masked, and compete with sinks (gpt-oss), in this order, as in transformers'
eager attention. Works in blocks of rows, so that memory grows with the number of keys alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# At most this many float32 values per block of rows (32 MiB), or one row.
BLOCK_VALUES = 2**23


@dataclass(frozen=True, slots=True, eq=False)
class LayerAttention:
    """query: [1, heads, rows, d], the new rows; key: [1, kv_heads, keys, d], all so far; the rows are the last keys.

    `scaling`: None for 1/sqrt(d). `softcap`: the bound of the scaled scores. `sinks`: [heads], a score per head that
    takes its share of the probabilities. `mask`: [1, 1 or heads, rows, keys], bool (True: visible) or added to the
    scores; None for causal attention.
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    @classmethod
    def of_call(
        cls, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, arguments: Mapping[str, Any]
    ) -> LayerAttention:
        """From what a model passes to transformers' attention interface."""
        return cls(query, key, arguments.get("scaling"), arguments.get("softcap"), arguments.get("s_aux"), mask)

    @property
    def rows(self) -> int:
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        return self.key.shape[2]

    @property
    def is_plain(self) -> bool:
        """Whether scaled dot-product attention computes it."""
        return self.softcap is None and self.sinks is None

    @property
    def sees_later_tokens(self) -> bool:
        """Whether the first of several rows sees the last key, by the mask."""
        if self.mask is None or self.rows < 2:
            return False
        corner = self.mask[0, :, 0, -1]
        visible = corner if corner.dtype == torch.bool else corner > torch.finfo(corner.dtype).min / 2
        return bool(visible.any())

    def probabilities(self, first: int, heads: Sequence[int] | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of the rows from position `first` on: the block's position, and float32[heads, rows, keys].

        `heads`: which heads; None for all.
        """
        start = first - (self.keys - self.rows)
        queries, keys = self._of_heads(start, heads)
        transposed = keys.float().transpose(1, 2)
        size = max(1, BLOCK_VALUES // (queries.shape[0] * self.keys))
        for row in range(0, queries.shape[1], size):
            block = queries[:, row : row + size].float()
            scores = self._capped(block, transposed)
            self._hide(scores, start + row, heads)
            yield first + row, self._softmax(scores, heads)

    def output(self, value: torch.Tensor) -> torch.Tensor:
        """The layer's output, [1, rows, heads, value_d]. value: [1, kv_heads, keys, value_d]."""
        values, outputs = value[0].float(), []
        for _, probabilities in self.probabilities(self.keys - self.rows):
            heads, rows, keys = probabilities.shape
            grouped = torch.bmm(probabilities.view(len(values), -1, keys), values)
            outputs.append(grouped.view(heads, rows, -1).transpose(0, 1))
        return torch.cat(outputs)[None].to(value.dtype)

    def _of_heads(self, start: int, heads: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries of `heads` and the keys that they share: all, or one copy of the keys for each of a few heads."""
        query, key = self.query[0, :, start:], self.key[0]
        if heads is None:
            return query, key
        index = torch.tensor(heads, device=query.device)
        return query[index], key[index // (query.shape[0] // key.shape[0])]

    def _capped(self, queries: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
        """Scores, float32[heads, rows, keys]. Heads that share keys do not copy them."""
        (heads, rows, d), (kv_heads, _, keys) = queries.shape, transposed.shape
        scaling = 1 / math.sqrt(d) if self.scaling is None else self.scaling
        grouped = queries.mul(scaling).reshape(kv_heads, -1, d)
        scores = torch.bmm(grouped, transposed).view(heads, rows, keys)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        return scores

    def _hide(self, scores: torch.Tensor, start: int, heads: Sequence[int] | None) -> None:
        """Mask the scores of the rows from the call's row `start` on."""
        rows = scores.shape[1]
        if self.mask is None:
            position = self.keys - self.rows + start
            newest = self.keys - position
            later = torch.ones(rows, newest, dtype=torch.bool, device=scores.device).triu(1)
            scores[:, :, position:].masked_fill_(later, -math.inf)
            return
        mask = self.mask[0, :, start : start + rows]
        if heads is not None and len(mask) > 1:
            mask = mask[list(heads)]
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, -math.inf)
        else:
            scores.add_(mask)

    def _softmax(self, scores: torch.Tensor, heads: Sequence[int] | None) -> torch.Tensor:
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks.float() if heads is None else self.sinks.float()[list(heads)]
        column = sinks[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[:, :, :-1]
