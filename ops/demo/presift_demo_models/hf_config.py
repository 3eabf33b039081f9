"""Makes config.json and generation_config.json from GGUF settings."""

from typing import Any

from presift_demo_models.errors import UnsupportedModel
from presift_demo_models.families import find_family
from presift_demo_models.gguf_file import TOKEN_EMBEDDING, GgufFile

# llama.cpp ends an answer at this token in every model that has it, as do Qwen's own generation settings
_END_OF_TEXT = "<|endoftext|>"
_FORMAT_VERSION = "5.0.0"  # the transformers version of this config.json layout


def model_config(gguf: GgufFile) -> dict[str, Any]:
    """config.json as a dict. Raises UnsupportedModel."""
    family = find_family(gguf.architecture)
    return {
        "architectures": [family.model_class],
        "model_type": gguf.architecture,
        "torch_dtype": "bfloat16",
        # without a version, transformers warns that the tokenizer may be a broken Mistral one
        "transformers_version": _FORMAT_VERSION,
        "hidden_act": "silu",
        "hidden_size": gguf.setting("embedding_length"),
        "intermediate_size": gguf.setting("feed_forward_length"),
        "num_hidden_layers": gguf.setting("block_count"),
        "rms_norm_eps": gguf.setting("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": gguf.setting("context_length"),
        "vocab_size": int(gguf.tensors[TOKEN_EMBEDDING].shape[-1]),
        "tie_word_embeddings": gguf.has_tied_embeddings,
        **_attention_settings(gguf),
        **_rope_settings(gguf),
        **_special_token_ids(gguf),
    }


def generation_config(gguf: GgufFile) -> dict[str, Any]:
    """generation_config.json as a dict: greedy, with all token ids that end an answer."""
    return {"do_sample": False, **_special_token_ids(gguf), "eos_token_id": eos_token_ids(gguf)}


def eos_token_ids(gguf: GgufFile) -> list[int]:
    """The token ids that end an answer, the tokenizer's EOS first."""
    eos = int(gguf.require("tokenizer.ggml.eos_token_id"))
    end_of_text = [index for index, token in enumerate(gguf.require("tokenizer.ggml.tokens")) if token == _END_OF_TEXT]
    return [eos, *(index for index in end_of_text if index != eos)]


def _attention_settings(gguf: GgufFile) -> dict[str, Any]:
    heads = gguf.setting("attention.head_count")
    head_size = gguf.get(f"{gguf.architecture}.attention.key_length") or gguf.setting("embedding_length") // heads
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.setting("attention.head_count_kv"),
        "head_dim": head_size,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "attention_dropout": 0.0,
    }


def _rope_settings(gguf: GgufFile) -> dict[str, Any]:
    scaling = gguf.get(f"{gguf.architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise UnsupportedModel(f"unsupported rotary scaling {scaling!r}")
    theta = gguf.setting("rope.freq_base")
    # transformers 4 reads rope_theta, transformers 5 rope_parameters
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _special_token_ids(gguf: GgufFile) -> dict[str, Any]:
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    values = {name: gguf.get(f"tokenizer.ggml.{key}") for name, key in keys.items()}
    return {name: value for name, value in values.items() if value is not None}
