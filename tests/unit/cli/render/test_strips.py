"""Values along the prompt, in bins and as images."""

import base64
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.cli.render.strips import binned, blocks, image, importance, kept_share, layers_of, scaled
from presift_client import KvMask


def test_bins_are_means_of_even_runs():
    assert binned(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [2, 6]
    assert binned(np.array([[True, False, True], [True, True, True]]), 1).tolist() == [[2 / 3], [1]]


@given(tokens=st.integers(1, 300), bins=st.integers(1, 100))
def test_bins_lose_nothing(tokens, bins):
    values = np.arange(tokens, dtype=np.float64)
    found = binned(values, bins)
    assert found.size == min(tokens, bins)
    sizes = np.diff(np.linspace(0, tokens, found.size + 1).astype(int))
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
    assert (found * sizes).sum() == pytest.approx(values.sum())


def test_values_of_tokens(explained):
    found = explained(["a", "b", "c"], [True, False, True], importance=[0.5, 0.3, 0.2])
    assert importance(found).tolist() == [0.5, 0.3, 0.2] and kept_share(found).tolist() == [1, 0, 1]
    kv = np.array([[[1, 0, 1], [1, 0, 0]]], dtype=bool)
    assert kept_share(explained(["a", "b", "c"], kv=kv)).tolist() == [1, 0, 0.5]


def test_layers_of_a_mask():
    kv = np.random.default_rng(0).random((3, 2, 13)) < 0.5
    mask = KvMask(3, 2, 13, np.packbits(kv, axis=2, bitorder="little").tobytes())
    assert np.array_equal(np.stack(list(layers_of(mask))), kv)


def test_scaled_for_the_eye():
    assert scaled(np.array([0.0, 1.0, 4.0])).tolist() == [0, 0.5, 1]
    assert scaled(np.zeros(3)).tolist() == [0, 0, 0]


def test_blocks():
    assert blocks(np.array([0.0, 0.01, 0.5, 1.0])) == " ▁▄█"


def test_an_image_is_a_png_of_one_row():
    kind, _, data = image(np.array([0.0, 0.5, 1.0])).partition(",")
    assert kind == "data:image/png;base64"
    raw = base64.b64decode(data)
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(raw):
        size, name = struct.unpack(">I4s", raw[at : at + 8])
        chunks[name] = raw[at + 8 : at + 8 + size]
        assert struct.unpack(">I", raw[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + chunks[name])
        at += 12 + size
    assert chunks[b"IHDR"][:8] == struct.pack(">II", 3, 1)
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 8, 16])
    assert (chunks[b"tRNS"][0], chunks[b"tRNS"][16]) == (0, 255) and list(chunks)[-1] == b"IEND"


def test_a_large_mask_is_fast():
    kv = np.random.default_rng(0).random((28, 2, 6000)) < 0.1
    mask = KvMask(28, 2, 6000, np.packbits(kv, axis=2, bitorder="little").tobytes())
    started = time.perf_counter()
    strips = [image(scaled(row)) for layer in layers_of(mask) for row in binned(layer, 1200)]
    assert len(strips) == 56 and time.perf_counter() - started < 2  # some 30 ms
    assert sum(map(len, strips)) < 120_000
