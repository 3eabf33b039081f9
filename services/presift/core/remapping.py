"""Remapping: importance carried from one tokenisation of a text to another, through the characters that tokens hold.

Knows no tokenizer: a token is the range of characters that it holds. Byte-level tokens may share a character, special
ones may hold none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError
from presift.core.importance import check_importance


def remapped(
    importance: NDArray[np.float32], source: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The importance of `source`'s tokens, float32[n], as that of `target`'s, float32[m]; the sum stays the same.

    `source`: int64[n, 2] and `target`: int64[m, 2] hold each token's characters [start, end) in one text, in any order.
    A token's importance is spread evenly over its characters, and a character's share over the target tokens that hold
    it. What no target token holds counts for the next character that one does (else the last); a source token without
    characters counts for the one where it stands. Raises InternalError if the importance is invalid, a range is, or no
    target token holds a character.
    """
    check_importance(importance)
    _check_ranges(source, importance.size)
    _check_ranges(target, len(target))
    givers, given = _characters(_widened(source))
    takers, taken = _characters(target)
    if not taken.size:
        raise InternalError("no target token holds a character", field="target", value="none", limit=">= 1")
    length = 1 + int(max(given.max(), taken.max()))
    holders = np.bincount(taken, minlength=length)
    per_character = importance.astype(np.float64) / np.bincount(givers)
    arrived = np.bincount(_held(given, holders), weights=per_character[givers], minlength=length)
    shares = arrived[taken] / holders[taken]
    return np.bincount(takers, weights=shares, minlength=len(target)).astype(np.float32)


def _check_ranges(offsets: NDArray[np.int64], tokens: int) -> None:
    is_valid = offsets.shape == (tokens, 2) and bool((offsets[:, 0] >= 0).all())
    if not is_valid or (offsets[:, 1] < offsets[:, 0]).any():
        shape, limit = str(offsets.shape), f"[{tokens}, 2], 0 <= start <= end"
        raise InternalError(f"offsets are {shape}; they must be {limit}", field="offsets", value=shape, limit=limit)


def _widened(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ranges, where an empty one holds the character that it stands before."""
    return np.stack([offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)], axis=1)


def _characters(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two of int64[k], one entry for each character of each token: the token's number, and the character's."""
    lengths = offsets[:, 1] - offsets[:, 0]
    tokens = np.repeat(np.arange(len(offsets)), lengths)
    firsts = np.cumsum(lengths) - lengths
    return tokens, np.arange(tokens.size) - firsts[tokens] + offsets[tokens, 0]


def _held(characters: NDArray[np.int64], holders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each character, or the next one that has holders, or the last that has."""
    held = np.flatnonzero(holders)
    before: NDArray[np.int64] = np.cumsum(holders > 0) - (holders > 0)
    return held[np.minimum(before[characters], held.size - 1)]
