"""Attention for a plain CPU: PyTorch's SDPA over the rows that are new, and no others.

SGLang's `torch_native` computes every row of the sequence for each chunk of it and throws the old ones away, so a chunk
costs S x S whatever the prefix cache held, and it copies K and V once per query head. Here a chunk of R rows costs
R x S, and the query heads of a group share K and V. The results are the same (tests/unit/target/test_cpu_attention.py).
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention

NAME = "torch_native"

# SGLang calls these methods, with these arguments.
# ruff: noqa: PLR0917


def register() -> None:
    """Take the place of `torch_native` in this process.

    It has no name of its own, because SGLang knows by the name not to use Triton kernels.
    """
    from sglang.srt.layers.attention.attention_registry import register_attention_backend  # noqa: PLC0415

    register_attention_backend(NAME)(CpuAttention)


class CpuAttention(TorchNativeAttnBackend):  # type: ignore[misc]
    """Causal self-attention of decoders; anything else is left to `torch_native`."""

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor | Any:
        if not _is_plain(layer):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache:
            self._save(k, v, layer, forward_batch)
        return self._attend(q, layer, forward_batch, forward_batch.extend_seq_lens.tolist())

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor | Any:
        if not _is_plain(layer):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache:
            self._save(k, v, layer, forward_batch)
        return self._attend(q, layer, forward_batch, [1] * len(forward_batch.seq_lens))

    def _save(self, k: Any, v: Any, layer: Any, forward_batch: Any) -> None:
        self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)

    def _attend(self, q: torch.Tensor, layer: Any, forward_batch: Any, new: list[int]) -> torch.Tensor:
        """float[rows, heads * dim]; `new` rows belong to each sequence, and each sees its sequence up to itself."""
        pool = self.token_to_kv_pool
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        lengths, places = forward_batch.seq_lens.tolist(), forward_batch.req_pool_indices.tolist()
        queries = q.reshape(-1, layer.tp_k_head_num, layer.tp_q_head_num // layer.tp_k_head_num, layer.qk_head_dim)
        outputs = []
        for query, place, length in zip(torch.split(queries, new), places, lengths, strict=True):
            slots = self.req_to_token_pool.req_to_token[place, :length]
            outputs.append(attend(query, keys[slots], values[slots], layer.scaling))
        return torch.cat(outputs).reshape(sum(new), -1)


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention of a sequence's last rows: float[rows, kv heads, group, dim].

    `query` float[rows, kv heads, group, dim]; `keys` and `values` [tokens, kv heads, dim] of any dtype, rows <= tokens.
    """
    rows, kv_heads, group, _ = query.shape
    tokens = keys.shape[0]
    # KV heads become the batch, the heads of a group share them without a copy.
    keys, values = (
        each.to(query.dtype).transpose(0, 1).unsqueeze(1).expand(kv_heads, group, tokens, each.shape[-1])
        for each in (keys, values)
    )
    # SDPA's own causal mask is for a square of rows and tokens; there it skips half of the work.
    is_square = rows == tokens
    mask = None if is_square or rows == 1 else torch.ones(rows, tokens, dtype=torch.bool).tril(tokens - rows)
    out = scaled_dot_product_attention(
        query.permute(1, 2, 0, 3), keys, values, attn_mask=mask, is_causal=is_square, scale=scaling
    )
    return out.permute(2, 0, 1, 3)


def _is_plain(layer: Any) -> bool:
    window = layer.sliding_window_size
    is_causal = not layer.is_cross_attention and layer.attn_type == AttentionType.DECODER
    return is_causal and (window is None or window <= -1) and not layer.logit_cap
