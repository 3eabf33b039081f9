"""Remapping: converts importance from one tokenization of a text to another, by the characters of the tokens.

It needs no tokenizer: a token is a range of characters. Byte-level tokens may share a character, special tokens may
have none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InternalError
from presift.core.importance import check_importance


def remapped(
    importance: NDArray[np.float32], source: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Convert importance of the source tokens, float32[n], to the target tokens, float32[m]. The sum stays the same.

    `source`: int64[n, 2] and `target`: int64[m, 2] are the characters [start, end) of each token in one text, in any
    order. A token's importance is split evenly among its characters, and a character's share among the target tokens
    that contain it. A character that no target token contains passes its share to the next one that is contained (or
    the last). A source token without characters counts for the character at its start. Raises InternalError if the
    importance or a range is invalid, or no target token has a character.
    """
    check_importance(importance)
    _check_ranges(source, importance.size)
    _check_ranges(target, len(target))
    source_tokens, source_characters = _characters(_widened(source))
    target_tokens, target_characters = _characters(target)
    if not target_characters.size:
        raise InternalError("no target token has a character", field="target", value="none", limit=">= 1")
    length = 1 + int(max(source_characters.max(), target_characters.max()))
    holders = np.bincount(target_characters, minlength=length)
    per_character = importance.astype(np.float64) / np.bincount(source_tokens)
    arrived = np.bincount(
        _contained(source_characters, holders), weights=per_character[source_tokens], minlength=length
    )
    shares = arrived[target_characters] / holders[target_characters]
    return np.bincount(target_tokens, weights=shares, minlength=len(target)).astype(np.float32)


def _check_ranges(offsets: NDArray[np.int64], tokens: int) -> None:
    is_valid = offsets.shape == (tokens, 2) and bool((offsets[:, 0] >= 0).all())
    if not is_valid or (offsets[:, 1] < offsets[:, 0]).any():
        shape, limit = str(offsets.shape), f"[{tokens}, 2], 0 <= start <= end"
        raise InternalError(f"offsets are {shape}; they must be {limit}", field="offsets", value=shape, limit=limit)


def _widened(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ranges, where an empty one is widened to the character after it."""
    return np.stack([offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)], axis=1)


def _characters(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two int64[k] with an entry per character of each token: the token's index and the character's index."""
    lengths = offsets[:, 1] - offsets[:, 0]
    tokens = np.repeat(np.arange(len(offsets)), lengths)
    firsts = np.cumsum(lengths) - lengths
    return tokens, np.arange(tokens.size) - firsts[tokens] + offsets[tokens, 0]


def _contained(characters: NDArray[np.int64], holders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each character, or the next one that some token contains, or the last such one."""
    held = np.flatnonzero(holders)
    before: NDArray[np.int64] = np.cumsum(holders > 0) - (holders > 0)
    return held[np.minimum(before[characters], held.size - 1)]
