"""Pooling: smooths importance along the sequence, so that a peak raises its neighbours (paper section 4.2, step 5).

Works on the last axis with stride 1; input and output have the same length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presift.core.policies import Pool


def pool(values: NDArray[np.float32], kind: Pool, kernel: int) -> NDArray[np.float32]:
    """float32[..., n] -> float32[..., n]: pools `kernel` (>= 1) neighbouring values, including the value itself.

    `(kernel - 1) // 2` of them are before it, the rest after it, so an even kernel reaches further after it. The
    padding is 0; the mean counts it.
    """
    if kind is Pool.NONE:
        return values
    padded = _padded(values, kernel)
    return _sliding_mean(padded, kernel) if kind is Pool.MEAN else _sliding_max(padded, kernel)


def _padded(values: NDArray[np.float32], kernel: int) -> NDArray[np.float32]:
    before = (kernel - 1) // 2
    along_last = [(0, 0)] * (values.ndim - 1) + [(before, kernel - 1 - before)]
    return np.pad(values, along_last)


def _sliding_max(padded: NDArray[np.float32], kernel: int) -> NDArray[np.float32]:
    # Double the width of the maxima, then combine two overlapping ones: log2(kernel) passes.
    width = 1
    while 2 * width <= kernel:
        padded = np.maximum(padded[..., :-width], padded[..., width:])
        width *= 2
    rest = kernel - width
    return np.maximum(padded[..., : padded.shape[-1] - rest], padded[..., rest:])


def _sliding_mean(padded: NDArray[np.float32], kernel: int) -> NDArray[np.float32]:
    # One float32 addition per offset, oldest first, in the order of the authors' pooling. A cumulative sum rounds
    # differently, and the last bit decides which of two nearly equal tokens is kept.
    count = padded.shape[-1] - kernel + 1
    total = padded[..., :count].copy()
    for offset in range(1, kernel):
        total += padded[..., offset : offset + count]
    return total / np.float32(kernel)
