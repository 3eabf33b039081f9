"""config.json carries what the GGUF says."""

import pytest
from gguf import GGUFWriter

from presift_demo_models.errors import UnsupportedModel
from presift_demo_models.gguf_file import GgufFile
from presift_demo_models.hf_config import eos_token_ids, generation_config, model_config

EXPECTED = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "vocab_size": 263,
    "rms_norm_eps": 1e-05,  # and not 9.99999974e-06
    "rope_theta": 10000.0,
    "eos_token_id": 260,
    "pad_token_id": 259,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("architecture", "model_class", "has_bias"),
    [("llama", "LlamaForCausalLM", False), ("qwen2", "Qwen2ForCausalLM", True)],
)
def test_config(make_gguf, architecture, model_class, has_bias):
    config = model_config(GgufFile(make_gguf(architecture=architecture).path))
    assert config.items() >= EXPECTED.items()
    assert config["architectures"] == [model_class]
    assert config["model_type"] == architecture
    assert config["attention_bias"] is has_bias
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert "bos_token_id" not in config


@pytest.mark.parametrize(("head", "is_tied"), [("absent", True), ("same", True), ("requantised", True), ("own", False)])
def test_tied_embeddings(make_gguf, head, is_tied):
    assert model_config(GgufFile(make_gguf(head=head).path))["tie_word_embeddings"] is is_tied


def test_generation_stops_at_both_end_tokens(make_gguf):
    gguf = GgufFile(make_gguf().path)
    assert eos_token_ids(gguf) == [260, 259]
    assert generation_config(gguf) == {"do_sample": False, "pad_token_id": 259, "eos_token_id": [260, 259]}


def test_rotary_scaling_is_refused_rather_than_ignored(make_gguf, monkeypatch):
    write = GGUFWriter.add_rope_freq_base

    def write_with_scaling(self, value):
        write(self, value)
        self.add_string("llama.rope.scaling.type", "yarn")

    monkeypatch.setattr(GGUFWriter, "add_rope_freq_base", write_with_scaling)
    with pytest.raises(UnsupportedModel, match="'yarn'"):
        model_config(GgufFile(make_gguf().path))


def test_a_missing_setting_is_named(make_gguf, monkeypatch):
    monkeypatch.setattr(GGUFWriter, "add_context_length", lambda *_: None)
    with pytest.raises(UnsupportedModel, match=r"llama\.context_length"):
        model_config(GgufFile(make_gguf().path))
