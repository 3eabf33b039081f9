"""The CPU attention gives what SGLang's own `torch_native` gives, for any mix of cached and new rows."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from presift.models.torchvision_ops import declare_missing

pytestmark = pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")

HEADS, KV_HEADS, DIM, POOL, REQUESTS = 6, 2, 16, 400, 4


class Pool:
    """A KV pool of one layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keys = torch.randn(POOL, KV_HEADS, DIM, generator=generator).to(dtype)
        self.values = torch.randn(POOL, KV_HEADS, DIM, generator=generator).to(dtype)

    def set_kv_buffer(self, layer: Any, where: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys[where.loc], self.values[where.loc] = keys.view(-1, KV_HEADS, DIM), values.view(-1, KV_HEADS, DIM)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.values


def run(backend: type, lengths: list[int], new: list[int], is_decode: bool, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # Slots in no order, as in a pool that is in use.
    table = torch.randperm(POOL, generator=generator)[: REQUESTS * 100].view(REQUESTS, 100).to(torch.int32)
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: is_decode),
        seq_lens=torch.tensor(lengths),
        req_pool_indices=torch.tensor([2, 0, 3][: len(lengths)]),
        extend_seq_lens=torch.tensor(new),
        extend_prefix_lens=torch.tensor(lengths) - torch.tensor(new),
        encoder_lens=None,
        encoder_out_cache_loc=None,
    )
    places = zip(batch.req_pool_indices.tolist(), lengths, new, strict=True)
    batch.out_cache_loc = torch.cat([table[place, length - rows : length] for place, length, rows in places]).long()
    runner = SimpleNamespace(
        device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=table), token_to_kv_pool=Pool(dtype)
    )
    q = torch.randn(sum(new), HEADS * DIM, generator=generator).to(dtype)
    k, v = (torch.randn(sum(new), KV_HEADS, DIM, generator=generator).to(dtype) for _ in range(2))
    attention = backend(runner)
    attention.init_forward_metadata(batch)
    forward = attention.forward_decode if is_decode else attention.forward_extend
    return forward(q, k, v, layer(), batch)


def layer() -> SimpleNamespace:
    from sglang.srt.layers.radix_attention import AttentionType

    values = {
        "layer_id": 0,
        "tp_q_head_num": HEADS,
        "tp_k_head_num": KV_HEADS,
        "qk_head_dim": DIM,
        "v_head_dim": DIM,
        "scaling": DIM**-0.5,
        "is_cross_attention": False,
        "attn_type": AttentionType.DECODER,
        "sliding_window_size": -1,
        "logit_cap": 0.0,
    }
    return SimpleNamespace(**values)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    ("lengths", "new", "is_decode"),
    [
        ([40], [40], False),
        ([90], [30], False),
        ([90], [1], False),
        ([1], [1], False),
        ([70, 50, 9], [20, 50, 1], False),
        ([70, 50, 1], [1, 1, 1], True),
    ],
)
def test_equal_to_torch_native(
    lengths: list[int], new: list[int], is_decode: bool, dtype: torch.dtype, tolerance: float
) -> None:
    # Loading SGLang takes seconds, so only the worker that runs these tests does. declare_missing comes first.
    declare_missing()
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from presift.target.cpu.attention import CpuAttention

    backends = (CpuAttention, TorchNativeAttnBackend)
    ours, theirs = (run(each, lengths, new, is_decode, dtype) for each in backends)

    assert ours.shape == theirs.shape == (sum(new), HEADS * DIM)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
