"""Checks a model folder: no pickled files, no paths that leave it, well-formed JSON and safetensors headers.

Code in a folder (`*.py`, named by `auto_map`) is never run: models are loaded with trust_remote_code=False, which
refuses a model that needs its own code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from presift.core.errors import InvalidRequest

# Pickled files run code when they are read. presift does not read them, and no other program should.
_PICKLED = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# safetensors' own limit.
MAX_HEADER_BYTES = 100_000_000


def check_folder(folder: Path) -> None:
    """Raise InvalidRequest, with the file's name, if `folder` has at any depth a pickled file, a link that leaves it,
    or an index of weights (`*.index.json`) with a path that does."""
    for file in sorted(_contents(folder)):
        if file.suffix.lower() in _PICKLED:
            raise InvalidRequest("model", file, "safetensors, not a pickled file: remove it from the folder")
        if file.is_symlink() and not _is_inside(file.resolve(), folder):
            raise InvalidRequest("model", file, "a file inside the model folder, not a link out of it")
        if file.name.endswith(".index.json"):
            _check_index(file)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises InvalidRequest."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest("model", file, f"a readable JSON object ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise InvalidRequest("model", file, "a JSON object")
    return value


def tensor_offsets(file: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """The header of a safetensors file, and the (start, end) of each tensor in the file. Raises InvalidRequest."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
            raise InvalidRequest("model", file, "safetensors with a header smaller than the file and 100 MB")
        header = stream.read(header_bytes)
    try:
        entries = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        if any(type(place) is not int for entry in entries for place in entry):
            raise ValueError("offsets that are no integers")
        offsets = sorted((start + 8 + header_bytes, end + 8 + header_bytes) for start, end in entries)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise InvalidRequest("model", file, "safetensors with a readable header") from None
    if any(not 8 + header_bytes <= start <= end <= size for start, end in offsets):
        raise InvalidRequest("model", file, "safetensors with all tensors inside the file")
    return header, offsets


def _contents(folder: Path) -> Iterator[Path]:
    """All files and folders in `folder`, at any depth; links are not followed, because they are checked themselves."""

    def refuse(error: OSError) -> None:
        raise InvalidRequest("model", error.filename, f"a readable folder ({type(error).__name__})") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in (*folders, *files))


def _check_index(file: Path) -> None:
    """An index says which file has each tensor; who loads the model joins its paths to the folder's."""
    weight_map = read_object(file).get("weight_map", {})
    if not isinstance(weight_map, dict):
        raise InvalidRequest("model", file, "an index with an object as `weight_map`")
    for path in weight_map.values():
        if not isinstance(path, str) or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            raise InvalidRequest("model", file, "an index whose `weight_map` has paths inside the model folder only")


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether `file` is in the folder or, if the folder is a snapshot of the hub cache, among the cache's blobs."""
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.resolve().parents[1] / "blobs")
    return any(file.is_relative_to(root) for root in roots)
