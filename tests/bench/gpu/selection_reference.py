"""Which KV pairs SpecKV keeps of a prompt, computed with transformers and numpy alone: in float32, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from kv_selection import kv_importance, scoring_rows, select_kv

from presift.core.kv_plan import KvPlan

_NAME = "presift_bench_captured"


def reference(folder: Path, prompt: np.ndarray, kv_plan: KvPlan) -> np.ndarray:
    """bool[layers, kv_heads, tokens - 1]: the pairs kept of `prompt`, without its final token, for a plan that selects
    by the target's queries.
    """
    policy = kv_plan.policy
    rows = scoring_rows(policy.window, len(kv_plan.lookahead_token_ids))
    tokens = np.concatenate([prompt.astype(np.int64), np.array(kv_plan.lookahead_token_ids, dtype=np.int64)])
    return np.stack(
        [
            select_kv(kv_importance(queries[-rows:], keys, policy), policy.capacity, policy.window)
            for queries, keys in _queries_and_keys(folder, tokens)
        ]
    )


def _queries_and_keys(folder: Path, tokens: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """float32[tokens, heads, d] and float32[tokens, kv_heads, d] of every layer, rotated."""
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: list[tuple[np.ndarray, np.ndarray]] = []

    def captured(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(tuple(each[0].transpose(0, 1).numpy() for each in (query, key)))
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    AttentionInterface.register(_NAME, captured)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.config._attn_implementation = _NAME
    with torch.inference_mode():
        model(torch.from_numpy(tokens)[None])
    return found
