"""Tiny random decoders of many families, by what is special about their attention.

Prompts of the tests are longer than the windows and the chunks.
"""

WINDOW = 24

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "num_hidden_layers": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 16}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}


def _kinds(*kinds):
    return {"num_hidden_layers": len(kinds), "layer_types": list(kinds), "sliding_window": WINDOW}


_ONE_IN_FOUR = _kinds(_SLIDING, _SLIDING, _SLIDING, _FULL)
_LINEAR_ONE_IN_FOUR = _kinds(_LINEAR, _LINEAR, _LINEAR, _FULL)
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 100,
}

# name: (model_type, settings, the layers with full attention)
_FAMILIES = {
    # full attention in every layer
    "qwen2": ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": False}, (0, 1, 2, 3)),
    "gpt_neox": ("gpt_neox", {}, (0, 1, 2, 3)),
    "stablelm": ("stablelm", {}, (0, 1, 2, 3)),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, (0, 1, 2, 3)),
    "qwen3_moe": ("qwen3_moe", _EXPERTS, (0, 1, 2, 3)),
    "olmoe": ("olmoe", _EXPERTS, (0, 1, 2, 3)),
    # a scaling of their own
    "granite": ("granite", {"attention_multiplier": 0.6}, (0, 1, 2, 3)),
    "granitemoe": ("granitemoe", {"attention_multiplier": 0.6} | _EXPERTS, (0, 1, 2, 3)),
    # windows
    "gemma3": ("gemma3_text", _kinds(_SLIDING, _SLIDING, _FULL) | {"query_pre_attn_scalar": 17}, (2,)),
    "cohere2": ("cohere2", _ONE_IN_FOUR, (3,)),
    "ministral": ("ministral", _ONE_IN_FOUR, (3,)),
    "olmo3": ("olmo3", _ONE_IN_FOUR, (3,)),
    "exaone4": ("exaone4", _ONE_IN_FOUR, (3,)),
    "qwen3": ("qwen3", _kinds(_FULL, _FULL, _FULL, _SLIDING) | {"use_sliding_window": True}, (0, 1, 2)),
    "llama4": (
        "llama4_text",
        {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 1, 1, 0], "intermediate_size_mlp": 48} | _EXPERTS,
        (3,),
    ),
    # windows as long as the context
    "mistral": ("mistral", {"sliding_window": 512}, (0, 1, 2, 3)),
    "phi3": ("phi3", {"sliding_window": 600}, (0, 1, 2, 3)),
    # soft caps, sinks
    "gemma2": (
        "gemma2",
        _kinds(_SLIDING, _FULL, _SLIDING, _FULL) | {"query_pre_attn_scalar": 17, "attn_logit_softcapping": 0.5},
        (1, 3),
    ),
    "gpt_oss": ("gpt_oss", _kinds(_SLIDING, _FULL, _SLIDING, _FULL) | _EXPERTS, (1, 3)),
    # queries and keys are longer than values
    "deepseek_v2": ("deepseek_v2", _LATENT | _EXPERTS, (0, 1, 2, 3)),
    "deepseek_v3": ("deepseek_v3", _LATENT | _EXPERTS, (0, 1, 2, 3)),
    # layers that use the KV of earlier ones
    "gemma3n": (
        "gemma3n_text",
        _kinds(_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL)
        | {"num_kv_shared_layers": 2, "laurel_rank": 4, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2}
        | {"vocab_size_per_layer_input": 128, "activation_sparsity_pattern": [0.0] * 5, "intermediate_size": [48] * 5},
        (2, 4),
    ),
    # rotations by the length of the prompt
    "phi3_long": ("phi3", {"rope_parameters": _LONG_ROPE, "original_max_position_embeddings": 100}, (0, 1, 2, 3)),
    # layers with states
    "qwen3_next": ("qwen3_next", _LINEAR_ONE_IN_FOUR | _DELTA_NET | _EXPERTS | _SHARED_EXPERT, (3,)),
    "qwen3_5": ("qwen3_5_text", _LINEAR_ONE_IN_FOUR | _DELTA_NET, (3,)),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        _kinds(_LINEAR, _FULL, _LINEAR, _FULL) | _DELTA_NET | _EXPERTS | _SHARED_EXPERT,
        (1, 3),
    ),
    "falcon_h1": ("falcon_h1", _MAMBA | {"mamba_d_ssm": 64}, (0, 1, 2, 3)),
    "bamba": ("bamba", _MAMBA | {"attn_layer_indices": [1, 3]}, (1, 3)),
    "jamba": (
        "jamba",
        {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False}
        | {"attn_layer_offset": 3, "attn_layer_period": 4}
        | _EXPERTS,
        (3,),
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        _kinds("mamba", "attention", "mamba", "attention") | _MAMBA | _EXPERTS | {"shared_intermediate_size": 16},
        (1, 3),
    ),
    "nemotron_h": (
        "nemotron_h",
        {"layers_block_type": ["mamba", "attention", "mamba", "attention"], "mamba_num_heads": 8, "n_groups": 1}
        | {"mamba_head_dim": 8, "ssm_state_size": 8, "chunk_size": 16, "conv_kernel": 4, "expand": 2},
        (1, 3),
    ),
    "lfm2": ("lfm2", _kinds("conv", _FULL, "conv", _FULL), (1, 3)),
}
FULL_LAYERS = {name: full for name, (_, _, full) in _FAMILIES.items()}

# Decoders that no draft can be. name: (model_type, settings, what the refusal says)
REFUSED = {
    "all_windows": (
        "mistral",
        {"sliding_window": WINDOW},
        r"mistral with layers 0\.\.3 sliding_attention \(24 tokens\)",
    ),
    "bert": ("bert", {}, "BertSelfAttention; it must be a causal decoder"),
    "bloom": ("bloom", {"n_layer": 4, "n_head": 4}, r"expected layers \[0, 1, 2, 3\]"),
    "doge": ("doge", {}, "DogeAttention; it must be a causal decoder"),
    "gptj": (
        "gptj",
        {"n_embd": 32, "n_head": 4, "n_layer": 4, "rotary_dim": 8, "n_positions": 512},
        "gptj; it must be a model that uses transformers' attention interface",
    ),
    "mamba": ("mamba", {}, r"mamba with layers 0\.\.3 mamba"),
    "olmo_hybrid": ("olmo_hybrid", _LINEAR_ONE_IN_FOUR | _DELTA_NET, "can score its warm-up prompt"),
}


def settings_of(name):
    """(model_type, settings) of a family."""
    model_type, settings, _ = (_FAMILIES | REFUSED)[name]
    return model_type, _SIZES | settings
