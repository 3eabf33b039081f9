"""What SpecKV keeps of a prompt and what is answered on it, by transformers and numpy alone: in float32, on the CPU.

A model is computed once over all tokens. Dropped KV pairs are masked, for the rows that read the compressed KV: those
of the final prompt token and of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kv_selection import kv_importance, scoring_rows, select_kv

from presift.core.kv_plan import KvPlan

_NAME = "presift_bench"


def selected(folder: Path, prompt: np.ndarray, kv_plan: KvPlan) -> np.ndarray:
    """bool[layers, kv_heads, tokens - 1]: the pairs kept of `prompt`, without its final token, for a plan that selects
    by the target's queries.
    """
    policy, found = kv_plan.policy, list[np.ndarray]()
    rows = scoring_rows(policy.window, len(kv_plan.lookahead_token_ids))

    def attend(layer: int, queries: Any, keys: Any, allowed: Any) -> Any:
        by_token = [each.transpose(0, 1).numpy() for each in (queries[:, -rows:], keys)]
        found.append(select_kv(kv_importance(*by_token, policy), policy.capacity, policy.window))
        return allowed

    _logits(folder, [*prompt, *kv_plan.lookahead_token_ids], attend)
    return np.stack(found)


def logprobs(folder: Path, prompt: np.ndarray, answer: Sequence[int], kept: np.ndarray | None = None) -> np.ndarray:
    """float32[answer, vocabulary]: log probabilities at each place of `answer`, given the tokens before it.

    `kept` as `selected` returns it; None keeps all.
    """
    import torch

    reading = prompt.size - 1

    def attend(layer: int, queries: Any, keys: Any, allowed: Any) -> Any:
        if kept is None:
            return allowed
        allowed = allowed.repeat(keys.shape[0], 1, 1)
        allowed[:, reading:, :reading] = torch.from_numpy(kept[layer])[:, None]
        return allowed

    logits = _logits(folder, [*prompt, *answer[:-1]], attend)
    return logits[reading:].log_softmax(-1).numpy()


def _logits(folder: Path, tokens: Sequence[int], attend: Callable[[int, Any, Any, Any], Any]) -> Any:
    """float32[tokens, vocabulary]. `attend` gets a layer, its rotated queries [heads, tokens, d] and keys
    [kv_heads, tokens, d] and the causal mask [1, tokens, tokens], and returns the mask of its KV heads."""
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM

    causal = torch.ones(1, len(tokens), len(tokens), dtype=torch.bool).tril()

    def attention(module: Any, query: Any, key: Any, value: Any, *_: Any, scaling: float, **__: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        mask = attend(module.layer_idx, query[0], key[0], causal)
        mask = mask.repeat_interleave(group, 0) if mask.shape[0] > 1 else mask
        keys, values = (each[0].repeat_interleave(group, 0) for each in (key, value))
        scores = (query[0] @ keys.transpose(1, 2) * scaling).masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ values).transpose(0, 1)[None], None

    AttentionInterface.register(_NAME, attention)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config._attn_implementation = _NAME
    with torch.inference_mode():
        return model(torch.tensor([[int(token) for token in tokens]])).logits[0]
