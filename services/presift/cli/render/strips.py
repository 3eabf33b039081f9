"""Strips: values along the prompt in a limited number of bins, as block characters or tiny images. Pure."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from presift_client import Explanation, KvMask

_BLOCKS = " ▁▂▃▄▅▆▇█"
_SHADES = 16
_COLOUR = (214, 92, 10)


def binned(values: NDArray[np.float64] | NDArray[np.bool_], bins: int) -> NDArray[np.float64]:
    """float64[..., min(bins, tokens)]: the means of `values` [..., tokens] over runs of nearly equal length."""
    tokens = values.shape[-1]
    edges = np.linspace(0, tokens, min(bins, tokens) + 1).astype(np.int64)
    sums = np.add.reduceat(values, edges[:-1], axis=-1, dtype=np.float64)
    return np.asarray(sums / np.diff(edges))


def importance(explanation: Explanation) -> NDArray[np.float64]:
    """float64[tokens]: the importance of each token, as a share of the prompt's importance."""
    return _per_token(explanation, [span.importance / span.tokens for span in explanation.spans])


def kept_share(explanation: Explanation) -> NDArray[np.float64]:
    """float64[tokens]: how much of each token is kept, 0..1."""
    shares = [float(span.kept) if span.kept_share is None else span.kept_share for span in explanation.spans]
    return _per_token(explanation, shares)


def layers_of(mask: KvMask) -> Iterator[NDArray[np.bool_]]:
    """bool[kv_heads, tokens] of each layer, one at a time, because the mask of a long prompt may be large."""
    rows = np.frombuffer(mask.bits, dtype=np.uint8).reshape(mask.layers, mask.kv_heads, -1)
    for layer in rows:
        yield np.unpackbits(layer, axis=1, count=mask.prompt_tokens, bitorder="little").astype(np.bool_)


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values scaled to 0..1 by the square root of their ratio to the highest, so that small values stay visible."""
    highest = values.max(initial=0.0)
    return np.sqrt(values / highest) if highest > 0 else np.zeros_like(values)


def blocks(values: NDArray[np.float64]) -> str:
    """One block character for each of `values`, 0..1."""
    return "".join(_BLOCKS[math.ceil(value * (len(_BLOCKS) - 1))] for value in values.tolist())


def image(values: NDArray[np.float64]) -> str:
    """A PNG as a data URI: one row with a pixel for each of `values` (0..1), from transparent to full colour."""
    shades = np.ceil(values * _SHADES).astype(np.uint8)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", shades.size, 1, 8, 3, 0, 0, 0),
        b"PLTE": bytes(_COLOUR) * (_SHADES + 1),
        b"tRNS": bytes(round(255 * shade / _SHADES) for shade in range(_SHADES + 1)),
        b"IDAT": zlib.compress(b"\0" + shades.tobytes(), 9),
        b"IEND": b"",
    }
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks.items())
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _per_token(explanation: Explanation, values: list[float]) -> NDArray[np.float64]:
    tokens = [span.tokens for span in explanation.spans]
    return np.repeat(np.asarray(values, dtype=np.float64), tokens)
