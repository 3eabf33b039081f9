"""Weights come out under the right name, in the right order, rounded to bfloat16 and nothing else."""

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from presift_demo_models import weights as module
from presift_demo_models.errors import UnsupportedModel
from presift_demo_models.families import find_family, hf_tensor_name
from presift_demo_models.gguf_file import GgufFile
from presift_demo_models.weights import StoredTensor, hf_tensors, write_safetensors


def convert(gguf_path, target):
    write_safetensors(target, hf_tensors(GgufFile(gguf_path)), lambda _: None)
    return load_file(target)


@pytest.mark.parametrize("pieces_of", [1, 100, 1 << 22])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_weight_survives(make_gguf, tmp_path, monkeypatch, architecture, pieces_of):
    monkeypatch.setattr(module, "_PIECE_ELEMENTS", pieces_of)
    made = make_gguf(architecture=architecture)
    loaded = convert(made.path, tmp_path / "model.safetensors")
    assert set(loaded) == set(made.weights)
    for name, expected in made.weights.items():
        assert torch.equal(loaded[name], torch.from_numpy(expected).to(torch.bfloat16)), name


@pytest.mark.parametrize(
    ("head", "is_stored"), [("absent", False), ("same", False), ("requantised", False), ("own", True)]
)
def test_a_tied_head_is_not_stored(make_gguf, tmp_path, head, is_stored):
    made = make_gguf(head=head)
    assert GgufFile(made.path).has_tied_embeddings is not is_stored
    assert ("lm_head.weight" in convert(made.path, tmp_path / "model.safetensors")) is is_stored


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_1"])
def test_quantised_rows_in_pieces_equal_the_whole(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "_PIECE_ELEMENTS", 64)
    quantisation = gguf.GGMLQuantizationType[kind]
    rows = gguf.quants.quantize(np.random.default_rng(1).standard_normal((5, 64), dtype=np.float32), quantisation)
    write_safetensors(tmp_path / "t", [StoredTensor("x", (5, 64), quantisation, rows)], lambda _: None)
    whole = torch.from_numpy(gguf.quants.dequantize(rows, quantisation)).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "t")["x"], whole)


def test_progress_is_reported(make_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PROGRESS_EVERY_BYTES", 1000)
    lines = []
    write_safetensors(tmp_path / "t", hf_tensors(GgufFile(make_gguf().path)), lines.append)
    assert len(lines) > 2
    assert all(line.startswith("converted ") for line in lines)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_qkv.weight", "blk.0.attn_q.scale"])
def test_an_unknown_tensor_is_refused(name):
    with pytest.raises(UnsupportedModel, match=name):
        hf_tensor_name(name)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UnsupportedModel, match="'gemma3'; supported: llama, qwen2"):
        find_family("gemma3")
