"""Converts one GGUF file to a Hugging Face folder with safetensors."""

import json
from pathlib import Path
from typing import Any

from presift_demo_models.gguf_file import GgufFile
from presift_demo_models.hf_config import generation_config, model_config
from presift_demo_models.tokenizer import tokenizer_config, tokenizer_json
from presift_demo_models.weights import hf_tensors, write_safetensors
from presift_demo_models.wheels import Progress

# Part of a ready folder's manifest. Raise it when the output changes: older folders are then converted again.
CONVERTER_VERSION = 2


def convert(gguf_path: Path, folder: Path, progress: Progress) -> None:
    """Write the model of `gguf_path` into the existing, empty `folder`. Raises UnsupportedModel."""
    gguf = GgufFile(gguf_path)
    documents = {
        "config.json": model_config(gguf),
        "generation_config.json": generation_config(gguf),
        "tokenizer.json": tokenizer_json(gguf),
        "tokenizer_config.json": tokenizer_config(gguf),
    }
    for name, document in documents.items():
        _write_json(folder / name, document)
    write_safetensors(folder / "model.safetensors", hf_tensors(gguf), progress)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
