"""Which model this is: a local Hugging Face folder or a hub id, and the digests that name its contents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from presift.core.errors import InvalidRequest
from presift.core.fingerprint import fingerprint

# Weights in any other format are never fetched, let alone unpickled; neither is code.
_HUB_FILES = ("*.json", "*.safetensors")
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with config.json and safetensors. `tokenizer_fingerprint` is empty without a tokenizer.json."""

    path: Path
    id: str
    revision: str
    tokenizer_fingerprint: str

    @property
    def has_tokenizer(self) -> bool:
        return bool(self.tokenizer_fingerprint)


def resolve(model: str) -> ModelFolder:
    """The folder of `model`: a path, or else a hub id that is downloaded first. Raises InvalidRequest."""
    local = Path(model).expanduser()
    path = local.resolve() if local.is_dir() else _download(model)
    # The hub's cache names a snapshot's folder after its commit.
    revision = weights_digest(path) if local.is_dir() else path.name
    tokenizer = path / "tokenizer.json"
    digest = fingerprint(tokenizer.read_bytes()) if tokenizer.is_file() else ""
    return ModelFolder(path, local.resolve().name if local.is_dir() else model, revision, digest)


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) over config.json and, of each safetensors file, its name, header and a sample of every tensor.

    It changes whenever training or conversion changed the weights, and costs no read of them. Raises InvalidRequest if
    config.json or the weights are missing.
    """
    config, files = folder / "config.json", sorted(folder.glob("*.safetensors"))
    if not config.is_file() or not files:
        raise InvalidRequest("model", folder, "a folder with config.json and *.safetensors")
    digest = hashlib.sha256(config.read_bytes())
    for file in files:
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        _add_samples(digest, file)
    return digest.hexdigest()


def _add_samples(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        digest.update(header)
        data = stream.tell()
        tensors = (entry for name, entry in json.loads(header).items() if name != "__metadata__")
        for start, end in sorted(tuple(entry["data_offsets"]) for entry in tensors):
            stream.seek(data + start + max(0, end - start - _SAMPLE_BYTES) // 2)
            digest.update(stream.read(min(_SAMPLE_BYTES, end - start)))


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - reads the environment when imported
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        limit = f"a local folder or a reachable hub id ({type(error).__name__})"
        raise InvalidRequest("model", model, limit) from error
