"""Keeps the KV of prompts that the draft read lately, so that a later turn or another question reads only what is new.

Only prompts with the same salt share KV. Used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray

# An older prompt of which a new one has this share is replaced by it: what is left of it is one question or answer.
_REPLACED_SHARE = 0.75

LayerKv = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class ReadPrompt:
    """A prompt, uint32[n], and the keys and values of the layers that read it: [1, kv_heads, n, head_dim] each."""

    salt: str
    token_ids: NDArray[np.uint32]
    layers: Sequence[LayerKv]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(each.numel() * each.element_size() for layer in self.layers for each in layer)

    def beginning(self, tokens: int, layers: int) -> list[LayerKv]:
        """The KV of the first tokens in the first layers."""
        return [(keys[:, :, :tokens], values[:, :, :tokens]) for keys, values in self.layers[:layers]]


class PrefixCache:
    """Holds at most `max_bytes` of KV; the prompt that was used least recently goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._prompts: LRUCache[int, ReadPrompt] = LRUCache(max_bytes, getsizeof=lambda prompt: prompt.nbytes)
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Bytes of KV that are held now."""
        return int(self._prompts.currsize)

    def find(self, salt: str, token_ids: NDArray[np.uint32], layers: int) -> tuple[int, list[LayerKv]]:
        """The longest known beginning of a prompt: its number of tokens, and its KV in the first `layers` layers."""
        best, length = None, 0
        for key, prompt in self._prompts.items():
            if prompt.salt == salt and len(prompt.layers) >= layers:
                shared = common_length(prompt.token_ids, token_ids)
                best, length = (key, shared) if shared > length else (best, length)
        return (0, []) if best is None else (length, self._prompts[best].beginning(length, layers))

    def put(self, prompt: ReadPrompt) -> None:
        """Keep a copy of a prompt, in place of those that it continues; none of one that is larger than the cache."""
        for key, known in list(self._prompts.items()):
            if known.salt == prompt.salt and len(known.layers) <= len(prompt.layers):
                shared = common_length(known.token_ids, prompt.token_ids)
                if shared >= _REPLACED_SHARE * known.token_ids.size:
                    del self._prompts[key]
        if prompt.nbytes <= self.max_bytes:
            self._count += 1
            self._prompts[self._count] = replace(prompt, layers=_in_one_block(prompt.layers))

    def clear(self) -> None:
        """Forget all prompts."""
        self._prompts.clear()


def _in_one_block(layers: Sequence[LayerKv]) -> list[LayerKv]:
    """A copy whose tensors share one block of memory.

    Many small blocks, allocated between the activations of a forward pass, leave holes in the heap: the process grew by
    1.7 times the size of what was kept.
    """
    flat = torch.cat([each.reshape(-1) for layer in layers for each in layer])
    parts = iter(torch.split(flat, [each.numel() for layer in layers for each in layer]))
    return [(next(parts).view(keys.shape), next(parts).view(values.shape)) for keys, values in layers]


def common_length(first: NDArray[T], second: NDArray[T]) -> int:
    """How many leading values two arrays, [n] and [m], have in common."""
    length = min(first.size, second.size)
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length
