"""Makes tokenizer.json and tokenizer_config.json, for the Hugging Face `tokenizers` library, from a GGUF vocabulary.

Only byte-level BPE ("gpt2" in llama.cpp) is supported. A GGUF file names its pre-tokenizer but does not define it, so
TEXT_RULES has the rules of each supported one.
"""

from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from presift_demo_models.errors import UnsupportedModel
from presift_demo_models.gguf_file import GgufFile

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class TextRules:
    """What happens to text before BPE. pre_tokenizers: in tokenizer.json form, in order, byte-level last."""

    normalizer: dict[str, Any] | None
    pre_tokenizers: tuple[dict[str, Any], ...]


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": use_regex, "use_regex": use_regex}


TEXT_RULES = {
    # As transformers converts this GGUF file, and as the reference vectors were recorded. llama.cpp splits digits
    # first. No merge has a digit, so only whitespace before one differs: "\n\n1" is 3 tokens here, 2 in llama.cpp.
    "smollm": TextRules(normalizer=None, pre_tokenizers=(_byte_level(use_regex=True),)),
    "qwen2": TextRules(
        normalizer={"type": "NFC"},
        pre_tokenizers=(
            {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "behavior": "Isolated", "invert": False},
            _byte_level(use_regex=False),
        ),
    ),
}


def tokenizer_json(gguf: GgufFile) -> dict[str, Any]:
    """tokenizer.json as a dict. Raises UnsupportedModel."""
    rules = _text_rules(gguf)
    tokens, types = gguf.require("tokenizer.ggml.tokens"), gguf.require("tokenizer.ggml.token_type")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": rules.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rules.pre_tokenizers)},
        "post_processor": rules.pre_tokenizers[-1],
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, types, gguf.require("tokenizer.ggml.merges")),
    }


def tokenizer_config(gguf: GgufFile) -> dict[str, Any]:
    """tokenizer_config.json as a dict, with the chat template."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: gguf.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    tokens = gguf.require("tokenizer.ggml.tokens")
    return {
        # the generic class uses tokenizer.json unchanged (for qwen2, transformers 5 always uses Qwen2Tokenizer, with
        # the same rules)
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.setting("context_length"),
        "chat_template": gguf.get("tokenizer.chat_template"),
        **{name: tokens[index] for name, index in ids.items() if index is not None},
    }


def _text_rules(gguf: GgufFile) -> TextRules:
    kind, name = gguf.require("tokenizer.ggml.model"), gguf.require("tokenizer.ggml.pre")
    if kind != "gpt2" or name not in TEXT_RULES:
        raise UnsupportedModel(f"unsupported tokenizer {kind!r} with pre-tokenizer {name!r}")
    if gguf.get("tokenizer.ggml.add_bos_token"):
        raise UnsupportedModel("unsupported tokenizer: it adds a BOS token")
    return TEXT_RULES[name]


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **flags, "special": kind == TokenType.CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]


def _bpe(tokens: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    # unused ids only pad the embedding matrix to a round size; they must not be encoded or decoded
    pairs = zip(tokens, types, strict=True)
    vocabulary = {token: index for index, (token, kind) in enumerate(pairs) if kind != TokenType.UNUSED}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [merge.split(" ") for merge in merges],
    }
