"""Finds a model, a local Hugging Face folder or a hub id, and computes the digests that identify it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint
from presift.models.safety import check_folder, read_object, tensor_offsets

# Only safetensors and JSON are downloaded: no pickled weights, no code.
_HUB_FILES = ("*.json", "*.safetensors")
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with config.json and safetensors.

    `id`: the folder's name or the hub id. `revision` changes with the weights. `tokenizer_fingerprint` is empty without
    a tokenizer.json.
    """

    path: Path
    id: str
    revision: str
    tokenizer_fingerprint: str

    @property
    def has_tokenizer(self) -> bool:
        return bool(self.tokenizer_fingerprint)


def resolve(model: str) -> ModelFolder:
    """The folder of `model`: a local path, or a hub id, which is downloaded first.

    Raises InvalidRequest if it does not exist or must not be loaded (see `safety`).
    """
    local = Path(model).expanduser()
    if local.is_dir():
        local = local.resolve()
        check_folder(local)
        return ModelFolder(local, local.name, weights_digest(local), tokenizer_fingerprint(local))
    path = _download(model)
    check_folder(path)
    read_object(path / "config.json")
    # The hub cache names a snapshot's folder by its commit.
    return ModelFolder(path, model, path.name, tokenizer_fingerprint(path))


def weights_digest(folder: Path) -> str:
    """SHA-256 (64 hex digits) over config.json and each safetensors file: name, size, header, a sample of each tensor.

    Reading every byte would take seconds at each start. The header has every tensor's name, type, shape and offsets.
    4 KiB from the middle of each tensor are read: training or conversion changes whole tensors, so it changes a sample.
    Raises InvalidRequest if config.json or the weights are missing or malformed.
    """
    files = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    if not files or not config.is_file():
        raise InvalidRequest("model", folder, "a folder with config.json and *.safetensors")
    read_object(config)
    digest = hashlib.sha256(config.read_bytes())
    for file in files:
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        _add_samples(digest, file)
    return digest.hexdigest()


def _add_samples(digest: hashlib._Hash, file: Path) -> None:
    header, offsets = tensor_offsets(file)
    digest.update(header)
    with file.open("rb") as stream:
        for start, end in offsets:
            stream.seek(start + max(0, end - start - _SAMPLE_BYTES) // 2)
            digest.update(stream.read(min(_SAMPLE_BYTES, end - start)))


def tokenizer_fingerprint(folder: Path) -> str:
    """As `ModelFolder.tokenizer_fingerprint`. Raises InvalidRequest for a tokenizer without a vocabulary."""
    file = folder / "tokenizer.json"
    return fingerprint(file.read_bytes()) if file.is_file() else ""


def _download(model: str) -> Path:
    # Imported here because only hub ids need it, and it reads the environment on import.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidRequest(
            "model", model, f"an existing local folder or a reachable hub id ({type(error).__name__})"
        ) from error
