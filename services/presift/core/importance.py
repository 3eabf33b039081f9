"""Importance: one float32 per prompt token, how much the draft attends to it (paper section 4.2).

Checks importance, weights the rows of the window, and measures the share that a selection keeps. The attention itself
comes from the draft.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError


def check_importance(importance: NDArray[np.float32]) -> None:
    """Raise InternalError unless it is float32 [n], not empty and finite: NaN would sort silently."""
    if importance.dtype != np.float32 or importance.ndim != 1 or importance.size == 0:
        shape, limit = f"{importance.dtype}{list(importance.shape)}", "float32[n], not empty"
        raise InternalError(f"importance is {shape}; it must be {limit}", field="importance", value=shape, limit=limit)
    if not np.isfinite(importance).all():
        raise InternalError("importance is not finite", field="importance", value="nan or inf", limit="finite")


def window_weights(window: int, weighted: bool) -> NDArray[np.float32]:
    """float32[window]: the weight of each row of the window, oldest first; 0 to 1 if `weighted`, else 1 (step 2).

    The weight of a single row is 1: otherwise it would be 0, and nothing would be left.
    """
    if not weighted or window == 1:
        return np.ones(window, dtype=np.float32)
    return np.linspace(0.0, 1.0, window, dtype=np.float32)


def coverage(importance: NDArray[np.float32], kept: NDArray[np.bool_]) -> float:
    """The share (0..1) of `importance`, float32[n], on `kept`, bool[n]; 1.0 if the importance is all zero.

    `importance` is un-pooled, with the window's rows summed. Raises InternalError if it is invalid or `kept` does not
    have its length.
    """
    check_importance(importance)
    if kept.shape != importance.shape:
        flags, values = str(kept.shape), str(importance.shape)
        raise InternalError(f"kept is {flags}, importance {values}", field="kept", value=flags, limit=values)
    total = float(importance.sum(dtype=np.float64))
    if total <= 0.0:
        return 1.0
    share = float(importance[kept].sum(dtype=np.float64)) / total
    return min(max(share, 0.0), 1.0)
