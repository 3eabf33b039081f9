"""Seeded sampling in SGLang, in the batches where a request has a seed. Other batches are sampled by SGLang alone.

SGLang honours `sampling_seed` only in its deterministic mode, which slows every request down. Here a batch gets one
seed per row as soon as one of its requests has one. Each row is then drawn by its seed and position alone, always over
the tokens in the order of their probabilities, so that the rest of the batch changes nothing.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch

from presift.target.sglang_plugin.sglang_names import installed, seeding_functions
from presift.target.sglang_plugin.transfers import to_device

# Called for every batch that has seeds.
_DRAWING = "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch"


def why_unsupported() -> str | None:
    """Why the installed SGLang cannot sample by seeds: it lacks functions. None if it can. Imports SGLang.

    The target refuses such requests, and the scheduler registers no hook. Each decides alone, by the same SGLang.
    """
    needed = {*seeding_functions(installed()).values(), _DRAWING}
    missing = sorted(path for path in needed if not _is_function(path))
    return f"SGLang {installed()} has no {', '.join(missing)}" if missing else None


def _is_function(path: str) -> bool:
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return False
    return callable(found) and not isinstance(found, type)


def register(is_plain_cpu: bool) -> None:
    """Hook SGLang in this process, unless it lacks one of the functions: half of the hooks would sample wrongly.

    `is_plain_cpu`: no kernel of SGLang's draws by seeds there, so that `instead_of_multinomial_with_seed` does.
    """
    if why_unsupported() is not None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415 - heavy

    hooks: list[tuple[Callable[..., Any], Any]] = [
        (around_forward_batch_generation, HookType.AROUND),
        (around_sample_from_probs, HookType.AROUND),
    ]
    if is_plain_cpu:
        hooks.append((instead_of_multinomial_with_seed, HookType.REPLACE))
    functions = seeding_functions(installed())
    for hook, kind in hooks:
        if hook.__name__ in functions:
            HookRegistry.register(functions[hook.__name__], hook, kind)
    HookRegistry.apply_hooks()
    # SGLang only logs what it could not hook; then seeds would have no effect.
    patched = getattr(HookRegistry, "_patched", functions.values())
    if missing := sorted(functions[hook.__name__] for hook, _ in hooks if functions.get(hook.__name__) not in patched):
        raise RuntimeError(f"SGLang {installed()} did not hook {', '.join(missing)}")


def around_forward_batch_generation(original: Any, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Give `batch` its seeds for this forward pass: SGLang has replaced its sampling values by a copy for the pass."""
    if batch is not None and batch.sampling_info is not None and batch.sampling_info.sampling_seed is None:
        batch.sampling_info.sampling_seed = seeds_of(batch.reqs, batch.device)
    return original(worker, batch, *args, **kwargs)


def seeds_of(requests: Any, device: Any) -> torch.Tensor | None:
    """int64[requests]: the request's own seed, or one made of its id. None if no request has a seed."""
    own = [request.sampling_params.sampling_seed for request in requests]
    if all(seed is None for seed in own):
        return None
    pairs = zip(own, requests, strict=True)
    return to_device(
        torch.tensor([_seed_of_id(request.rid) if seed is None else seed for seed, request in pairs]), device
    )


def _seed_of_id(request_id: str) -> int:
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest()) >> 1


def around_sample_from_probs(
    original: Any, sampler: Any, probs: torch.Tensor, info: Any, positions: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Sample a batch with seeds from `probs` (float[rows, vocabulary]). SGLang's backends for GPUs refuse seeds.

    `min_p` fails in SGLang in a batch with seeds, and with it the whole scheduler, so it is applied here. The tokens
    that it removes come last in SGLang's order, so top-k and top-p keep the same tokens as if it were applied after.
    """
    if info.sampling_seed is None or info.sampling_mask_batch_indices is not None:
        return original(sampler, probs, info, positions, *args, **kwargs)
    from sglang.srt.layers import sampler as sampling  # noqa: PLC0415 - in the scheduler alone

    if info.need_min_p_sampling:
        probs = without_unlikely(probs, info.min_ps)
    tokens = sampling.top_k_top_p_min_p_sampling_from_probs_torch(
        probs, info.top_ks, info.top_ps, info.min_ps, False, info.sampling_seed, positions
    )
    return tokens, None


def without_unlikely(probs: torch.Tensor, min_ps: torch.Tensor) -> torch.Tensor:
    """`probs` with 0 for the tokens below `min_ps` (float[rows]) of their row's most likely one."""
    least = probs.max(dim=-1, keepdim=True).values * min_ps.view(-1, 1)
    return torch.where(probs < least, torch.zeros_like(probs), probs)


def instead_of_multinomial_with_seed(
    logprobs: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """int64[rows, 1]: one index per row of `logprobs` (float[rows, vocabulary]), by the Gumbel trick."""
    rows = zip(logprobs, seeds.tolist(), positions.tolist(), strict=True)
    return torch.stack([torch.argmax(row.double() + _noise(row, seed, at)) for row, seed, at in rows]).unsqueeze(1)


def _noise(row: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    generator = torch.Generator(row.device)
    # Hashed, because torch uses 32 bits of a seed, and similar seeds must not give similar streams.
    generator.manual_seed(int.from_bytes(blake2b(f"{seed} {position}".encode(), digest_size=8).digest()))
    uniform = torch.rand(row.shape, generator=generator, dtype=torch.float64, device=row.device)
    return -torch.log(-torch.log(uniform))
