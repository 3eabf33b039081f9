"""Reads a GGUF file: settings by name and tensors in file order.

The file is memory-mapped. Opening it reads only the metadata (a few seconds for a vocabulary of 150,000).
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from presift_demo_models.errors import UnsupportedModel

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT_HEAD = "output.weight"

_SAMPLED_ROWS = 256
# Q4 and Q5 change weights by 3 to 8 percent of their mean size; independent matrices differ by more than 100 percent.
_ROUNDING = 0.2


class GgufFile:
    """One GGUF file. Values are plain Python ints, floats, strings and lists."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture: str = self.require("general.architecture")

    def get(self, key: str) -> Any:
        """The value of a metadata key; None if it is missing."""
        field = self._reader.get_field(key)
        value = None if field is None else field.contents()
        # GGUF stores float32. The shortest equal decimal turns 9.99999974e-06 back into 1e-05.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def require(self, key: str) -> Any:
        """The value of a metadata key. Raises UnsupportedModel if it is missing."""
        value = self.get(key)
        if value is None:
            raise UnsupportedModel(f"the GGUF file has no setting {key}")
        return value

    def setting(self, key: str) -> Any:
        """A required value under the architecture's own prefix: `block_count` is read from `llama.block_count`."""
        return self.require(f"{self.architecture}.{key}")

    @property
    def has_tied_embeddings(self) -> bool:
        """Whether the output head equals the token embedding: it is missing, or stored a second time.

        Quantisers store a tied head a second time in another precision, so the two differ only by rounding.
        """
        head = self.tensors.get(OUTPUT_HEAD)
        if head is None:
            return True
        embedding = self.tensors[TOKEN_EMBEDDING]
        if list(head.shape) != list(embedding.shape):
            return False
        sample, other = _sample(embedding), _sample(head)
        return bool(np.abs(sample - other).mean() < _ROUNDING * np.abs(sample).mean())


def _sample(tensor: ReaderTensor) -> npt.NDArray[np.float32]:
    """float32[rows, elements]: evenly spaced rows of a matrix."""
    rows = np.unique(np.linspace(0, len(tensor.data) - 1, _SAMPLED_ROWS, dtype=np.int64))
    return np.asarray(dequantize(tensor.data[rows], tensor.tensor_type), dtype=np.float32)
