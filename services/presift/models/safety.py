"""What a model's folder may hold: safetensors for weights, JSON for the rest, and nothing that lies elsewhere.

Files are only looked at. Code in a folder (`*.py`, named by `auto_map`) is never run: whoever loads the model says
trust_remote_code=False, and a model that needs its own code is refused there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from presift.core.errors import InvalidRequest

# Pickles, which run what they hold when they are read. Nothing here reads them, nor should anything after us.
_PICKLED = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# safetensors' own limit.
MAX_HEADER_BYTES = 100_000_000


def check_folder(folder: Path) -> None:
    """Raise InvalidRequest, naming the file, for one that may not lie in a model's folder."""
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in _PICKLED:
            raise InvalidRequest("model", file, "safetensors alone: remove the pickled file from the folder")
        if file.is_symlink() and not _is_ours(file.resolve(), folder):
            raise InvalidRequest("model", file, "a file of the folder: the link leads out of it")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises InvalidRequest."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest("model", file, f"a JSON object ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise InvalidRequest("model", file, "a JSON object (another value)")
    return value


def tensor_places(file: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The header of a safetensors file, and where each tensor begins and ends in the file. Raises InvalidRequest."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
            raise InvalidRequest("model", file, "safetensors (its header is longer than the file, or than 100 MB)")
        header = stream.read(header_bytes)
    try:
        entries = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        places = sorted((start + 8 + header_bytes, end + 8 + header_bytes) for start, end in entries)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise InvalidRequest("model", file, "safetensors (its header cannot be read)") from None
    if any(not 8 + header_bytes <= start <= end <= size for start, end in places):
        raise InvalidRequest("model", file, "safetensors (a tensor lies outside the file)")
    return header, places


def _is_ours(file: Path, folder: Path) -> bool:
    """Whether it lies in the folder, or among the blobs of the hub's cache whose snapshot the folder is."""
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.resolve().parents[1] / "blobs")
    return any(file.is_relative_to(root) for root in roots)
