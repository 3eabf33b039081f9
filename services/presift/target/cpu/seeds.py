"""Makes seeded sampling in SGLang repeatable, per request and on any device.

SGLang honours `sampling_seed` only in its deterministic mode, which needs CUDA kernels and slows every request down.
Here three of its functions are hooked: each batch gets one seed per row, and each row is drawn with a generator that
depends only on the row's seed and position, not on the rest of the batch. SGLang's `min_p` fails in a batch with seeds,
and with it the whole scheduler, so it is applied here.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import torch

# SGLang defines the arguments of these functions.
# ruff: noqa: PLR0917

BATCH_INFO = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"
MULTINOMIAL = "sglang.srt.layers.sampler.multinomial_with_seed"
FILTERED = "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch"


def register() -> None:
    """Hook SGLang in this process. Raises RuntimeError if a function is missing; SGLang would only log it."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415

    HookRegistry.register(BATCH_INFO, add_seeds, HookType.AFTER)
    HookRegistry.register(MULTINOMIAL, draw, HookType.REPLACE)
    HookRegistry.register(FILTERED, around_filtered_sampling, HookType.AROUND)
    HookRegistry.apply_hooks()
    missing = {BATCH_INFO, MULTINOMIAL, FILTERED} - HookRegistry._patched
    if missing:
        raise RuntimeError(f"the installed SGLang has no {', '.join(sorted(missing))}")


def add_seeds(info: Any, _cls: type, batch: Any, vocab_size: int) -> Any:
    """Set `info.sampling_seed`: int64[requests], the request's own seed or a random one."""
    # Also for greedy batches, because SGLang concatenates the seeds when it merges batches.
    seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
    drawn = [random.getrandbits(63) if seed is None else seed for seed in seeds]
    info.sampling_seed = torch.tensor(drawn, dtype=torch.int64, device=batch.device)
    return info


def around_filtered_sampling(
    original: Any,
    probs: torch.Tensor,
    top_ks: Any,
    top_ps: Any,
    min_ps: torch.Tensor,
    need_min_p_sampling: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Sample from `probs` (float[rows, vocabulary]) without the tokens below `min_ps` of their row's most likely one.

    They come last in SGLang's order, so top-k and top-p keep the same tokens as if `min_ps` were applied after them.
    """
    if need_min_p_sampling:
        least = probs.max(dim=-1, keepdim=True).values * min_ps.view(-1, 1)
        probs = torch.where(probs < least, torch.zeros_like(probs), probs)
    return original(probs, top_ks, top_ps, min_ps, False, *args, **kwargs)


def draw(logprobs: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64[rows, 1]: one index per row of `logprobs` (float[rows, vocabulary]), by the Gumbel trick."""
    rows = zip(logprobs, seeds.tolist(), positions.tolist(), strict=True)
    return torch.stack([torch.argmax(row.double() + _noise(row, seed, at)) for row, seed, at in rows]).unsqueeze(1)


def _noise(row: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    generator = torch.Generator(row.device)
    # Hashed, because torch uses 32 bits of a seed, and similar seeds must not give similar streams.
    generator.manual_seed(int.from_bytes(blake2b(f"{seed} {position}".encode(), digest_size=8).digest()))
    uniform = torch.rand(row.shape, generator=generator, dtype=torch.float64, device=row.device)
    return -torch.log(-torch.log(uniform))
