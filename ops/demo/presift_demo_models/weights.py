"""Writes GGUF tensors to one bfloat16 safetensors file, in pieces, with a few hundred MB of memory.

The file (a JSON header, then raw bytes) is written directly, because the safetensors library needs all tensors in
memory at once. https://huggingface.co/docs/safetensors#format
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from presift_demo_models.families import find_family, hf_tensor_name
from presift_demo_models.gguf_file import OUTPUT_HEAD, GgufFile
from presift_demo_models.wheels import Progress

_PIECE_ELEMENTS = 1 << 22
_BFLOAT16_BYTES = 2
_PROGRESS_EVERY_BYTES = 250_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A quantised tensor with its Hugging Face name.

    rows: [rows, bytes per row] or float[elements], in Hugging Face order. shape: of the dequantised tensor.
    """

    name: str
    shape: tuple[int, ...]
    quantisation: GGMLQuantizationType
    rows: npt.NDArray[Any]

    @property
    def size_bytes(self) -> int:
        """Size in bytes as bfloat16."""
        return int(np.prod(self.shape)) * _BFLOAT16_BYTES


def hf_tensors(gguf: GgufFile) -> list[StoredTensor]:
    """The tensors of the Hugging Face model, without a tied output head. Raises UnsupportedModel."""
    skipped = {OUTPUT_HEAD} if gguf.has_tied_embeddings else set()
    return [_hf_tensor(gguf, name) for name in gguf.tensors if name not in skipped]


def write_safetensors(path: Path, tensors: list[StoredTensor], progress: Progress) -> None:
    """Dequantise `tensors` into the safetensors file `path`. Needs memory for one piece, not for a whole tensor."""
    total_bytes = sum(tensor.size_bytes for tensor in tensors)
    written_bytes, next_report = 0, _PROGRESS_EVERY_BYTES
    with path.open("wb") as out:
        _write_header(out, tensors)
        for tensor in tensors:
            for piece in _bfloat16_pieces(tensor):
                written_bytes += out.write(piece)
            if written_bytes >= next_report:
                progress(f"converted {written_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB")
                next_report = written_bytes + _PROGRESS_EVERY_BYTES


def rotary_row_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """For each Hugging Face row of Q or K its llama.cpp row: per head, even rows first, then odd ones."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(rows)


def _hf_tensor(gguf: GgufFile, name: str) -> StoredTensor:
    source = gguf.tensors[name]
    rows = source.data
    heads = _interleaved_heads(gguf, name)
    if heads is not None:
        # quantisation works along a row, so rows can be reordered without dequantising
        rows = rows[rotary_row_order(len(rows), heads)]
    shape = tuple(int(size) for size in reversed(source.shape))  # GGUF lists the fastest dimension first
    return StoredTensor(hf_tensor_name(name), shape, source.tensor_type, rows)


def _interleaved_heads(gguf: GgufFile, name: str) -> int | None:
    if not find_family(gguf.architecture).has_interleaved_rope:
        return None
    head_counts = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    part = name.split(".")[-2]
    return int(gguf.setting(head_counts[part])) if part in head_counts else None


def _write_header(out: BinaryIO, tensors: list[StoredTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data must start 8-byte aligned
    out.write(struct.pack("<Q", len(encoded)) + encoded)


def _bfloat16_pieces(tensor: StoredTensor) -> Iterator[bytes]:
    rows_per_piece = max(1, _PIECE_ELEMENTS * len(tensor.rows) // int(np.prod(tensor.shape)))
    for start in range(0, len(tensor.rows), rows_per_piece):
        values = dequantize(tensor.rows[start : start + rows_per_piece], tensor.quantisation)
        yield quantize(values, GGMLQuantizationType.BF16).tobytes()
