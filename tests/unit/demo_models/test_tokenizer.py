"""The tokenizer.json that is written does what the models' tokenizers do."""

import json
import unicodedata

import pytest
from tokenizers import Tokenizer

from presift_demo_models.errors import UnsupportedModel
from presift_demo_models.gguf_file import GgufFile
from presift_demo_models.tokenizer import tokenizer_config, tokenizer_json


@pytest.fixture
def load(make_gguf):
    def _load(architecture):
        return Tokenizer.from_str(json.dumps(tokenizer_json(GgufFile(make_gguf(architecture=architecture).path))))

    return _load


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("text", ["abc ab\n\n12  x", "naïve — 東京 🙂", "\t\r\n trailing ", "<|im_end|>abc<tool>"])
def test_round_trip(load, architecture, text):
    tokenizer = load(architecture)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_merges_and_added_tokens(load):
    encoded = load("llama").encode("abc<|im_end|>ab<tool>")
    assert encoded.tokens == ["abc", "<|im_end|>", "ab", "<tool>"]
    assert encoded.ids == [258, 260, 257, 261]


def test_only_control_tokens_are_skipped_when_decoding(load):
    tokenizer = load("llama")
    assert tokenizer.decode(tokenizer.encode("ab<|im_end|><tool>").ids) == "ab<tool>"


def test_unused_ids_are_no_tokens(load):
    tokenizer = load("qwen2")
    assert tokenizer.token_to_id("[PAD]") is None
    assert tokenizer.encode("[PAD]").tokens == list("[PAD]")


def test_only_qwen_normalises(load):
    decomposed = unicodedata.normalize("NFD", "é")
    assert load("qwen2").encode(decomposed).ids == load("qwen2").encode("é").ids
    assert load("llama").encode(decomposed).ids != load("llama").encode("é").ids


def test_how_newlines_before_text_are_cut(load):
    # smollm: only the last whitespace character stays with what follows; qwen2: newlines keep together
    assert load("llama").encode("ab\n\n1").tokens == ["ab", "Ċ", "Ċ", "1"]
    assert load("qwen2").encode("ab\n\n1").tokens == ["ab", "ĊĊ", "1"]


def test_config_names_the_special_tokens(make_gguf):
    config = tokenizer_config(GgufFile(make_gguf().path))
    assert config["eos_token"] == "<|im_end|>"
    assert config["pad_token"] == "<|endoftext|>"
    assert config["chat_template"] == "{{ messages }}"
    assert config["model_max_length"] == 128
    assert "bos_token" not in config


def test_an_unknown_pre_tokenizer_is_refused(make_gguf):
    with pytest.raises(UnsupportedModel, match="'tekken'"):
        tokenizer_json(GgufFile(make_gguf(pre_tokenizer="tekken").path))
