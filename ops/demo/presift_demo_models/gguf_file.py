"""A GGUF file as the converter sees it: settings by name and tensors in file order.

The file is memory-mapped: opening it costs the metadata only (a few seconds for a vocabulary of 150,000).
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
# Q4 and Q5 round weights by 3 to 8 percent of their mean size; matrices trained apart differ by more than 100.
_ROUNDING = 0.2


class GgufFile:
    """Read access to one GGUF file. Values come back as plain Python ints, floats, strings and lists."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture: str = self.require("general.architecture")

    def get(self, key: str) -> Any:
        """The value of a metadata key, None if absent."""
        field = self._reader.get_field(key)
        value = None if field is None else field.contents()
        # GGUF stores float32; the shortest decimal that means the same turns 9.99999974e-06 back into 1e-05
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def require(self, key: str) -> Any:
        """The value of a metadata key; raises UnsupportedModel if absent."""
        value = self.get(key)
        if value is None:
            raise UnsupportedModel(f"the GGUF has no {key}")
        return value

    def setting(self, key: str) -> Any:
        """A required value under the architecture's own prefix: `block_count` is read from `llama.block_count`."""
        return self.require(f"{self.architecture}.{key}")

    @property
    def has_tied_embeddings(self) -> bool:
        """Whether the output head is the token embedding: left out of the file, or stored again.

        Quantisers store a tied head a second time, at another precision: the two then differ by their rounding alone.
        """
        head = self.tensors.get(OUTPUT_HEAD)
        if head is None:
            return True
        embedding = self.tensors[TOKEN_EMBEDDING]
        if list(head.shape) != list(embedding.shape):
            return False
        kept, again = _sample(embedding), _sample(head)
        return bool(np.abs(kept - again).mean() < _ROUNDING * np.abs(kept).mean())


def _sample(tensor: ReaderTensor) -> npt.NDArray[np.float32]:
    """float32[rows, elements]: some rows of a matrix, spread over it."""
    rows = np.unique(np.linspace(0, len(tensor.data) - 1, _SAMPLED_ROWS, dtype=np.int64))
    return np.asarray(dequantize(tensor.data[rows], tensor.tensor_type), dtype=np.float32)
