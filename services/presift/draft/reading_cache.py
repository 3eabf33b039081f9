"""Caches for one prompt's keys, values and states, as transformers' models use them.

Imported late, because transformers must be imported after `torchvision_ops.declare_missing`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class WholeWindowLayer(DynamicLayer):  # type: ignore[misc]
    """A windowed layer that keeps the keys of all tokens, and shows the model those that its window can reach.

    transformers' own layer forgets the others, so that another prompt could not continue from an earlier token.
    """

    is_sliding = True

    def __init__(self, sliding_window: int) -> None:
        super().__init__()
        self._reach = sliding_window - 1

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add new keys and values; returns those that the new tokens may see."""
        _, hidden = self.get_mask_sizes(0)
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys[:, :, hidden:], values[:, :, hidden:]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys `update` returns, and the position of the first."""
        seen = self.get_seq_length()
        hidden = max(0, seen - self._reach)
        return seen + query_length - hidden, hidden


def new_cache(config: Any, *, keeps_windows: bool) -> Any:
    """An empty cache. `keeps_windows`: windowed layers keep the keys and values of all tokens."""
    cache = DynamicCache(config=config)
    if keeps_windows:
        cache.layers = [
            WholeWindowLayer(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else layer
            for layer in cache.layers
        ]
    return cache
