"""Shapes: parameters and KV bytes as published, config.json, and unsupported models."""

import json

import pytest

from presift.cli.planning.shapes import KNOWN, shape_of
from presift.core.errors import InvalidRequest

CONFIG = {
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.135),
        ("qwen2.5-0.5b", 0.49),
        ("qwen2.5-1.5b", 1.54),
        ("qwen2.5-3b", 3.09),
        ("qwen2.5-7b", 7.61),
        ("qwen2.5-14b", 14.7),
        ("qwen2.5-32b", 32.5),
        ("qwen2.5-72b", 72.7),
        ("llama-3.2-1b", 1.24),
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.6),
    ],
)
def test_parameters_as_their_publishers_count_them(name, billions):
    assert KNOWN[name].parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_kv_bytes_by_hand():
    # 28 layers, 2 KV heads of 128, keys and values of 2 bytes.
    assert KNOWN["qwen2.5-1.5b"].kv_bytes == 28 * 2 * 128 * 2 * 2 == 28_672
    assert KNOWN["llama-3.1-8b"].kv_bytes == 131_072


@pytest.fixture
def folder(tmp_path):
    def made(**changes):
        path = tmp_path / "model"
        path.mkdir(exist_ok=True)
        config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
        (path / "config.json").write_text(json.dumps(config))
        return str(path)

    return made


def test_a_folder_is_read_from_its_config(folder):
    shape = shape_of("target", folder())
    known = KNOWN["qwen2.5-1.5b"]
    assert (shape.parameters, shape.kv_bytes) == (known.parameters, known.kv_bytes)
    # Without grouped queries every head has its own keys.
    assert shape_of("target", folder(num_key_value_heads=None)).kv_bytes == known.kv_bytes * 6
    assert shape_of("target", folder(head_dim=64)).kv_bytes == known.kv_bytes / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 8}, "num_experts"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "many"}, "many"),
        ({"num_hidden_layers": 0}, "layers"),
    ],
)
def test_unsupported_models_are_refused(folder, changes, message):
    with pytest.raises(InvalidRequest, match=message):
        shape_of("target", folder(**changes))


def test_an_unused_window_is_ignored(folder):
    assert shape_of("target", folder(sliding_window=4096, use_sliding_window=False)).layers == 28


def test_the_error_for_an_unknown_model_lists_the_known_ones(tmp_path):
    with pytest.raises(InvalidRequest, match=r"draft is .*config.json, or one of .*qwen2.5-0.5b"):
        shape_of("draft", str(tmp_path))
