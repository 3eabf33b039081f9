"""Maps llama.cpp's model architectures and tensor names to Hugging Face.

To add a family, add an entry to FAMILIES, and its tensor names if they are new.
"""

import re
from dataclasses import dataclass

from presift_demo_models.errors import UnsupportedModel
from presift_demo_models.gguf_file import OUTPUT_HEAD, TOKEN_EMBEDDING


@dataclass(frozen=True, slots=True)
class Family:
    """A GGUF architecture.

    has_interleaved_rope: whether llama.cpp reordered the rows of Q and K for its interleaved rotary embedding. Hugging
    Face rotates halves, so the conversion restores the order.
    """

    model_class: str
    has_interleaved_rope: bool


FAMILIES = {
    "llama": Family(model_class="LlamaForCausalLM", has_interleaved_rope=True),
    "qwen2": Family(model_class="Qwen2ForCausalLM", has_interleaved_rope=False),
}

_TOP_NAMES = {
    TOKEN_EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    OUTPUT_HEAD: "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK_TENSOR = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+)\.(?P<kind>weight|bias)")


def find_family(architecture: str) -> Family:
    """The family of a GGUF `general.architecture`; raises UnsupportedModel."""
    if architecture not in FAMILIES:
        raise UnsupportedModel(f"unsupported architecture {architecture!r}; supported: {', '.join(FAMILIES)}")
    return FAMILIES[architecture]


def hf_tensor_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; raises UnsupportedModel."""
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    match = _BLOCK_TENSOR.fullmatch(gguf_name)
    if match is None or match["part"] not in _BLOCK_NAMES:
        raise UnsupportedModel(f"unsupported tensor {gguf_name!r}: it has no known Hugging Face name")
    return f"model.layers.{match['layer']}.{_BLOCK_NAMES[match['part']]}.{match['kind']}"
