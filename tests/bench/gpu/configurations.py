"""The configurations of SGLang that the GPU checks run, the most valuable first.

The factors are attention backend, CUDA graphs, overlap schedule, page size and KV data type. Their full product has 108
members. Here every pair of values occurs in some configuration, and every pair of the first four in one whose KV is not
quantised, where KV is dropped. Nine of those are needed, because three backends meet three page sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BACKENDS = ("flashinfer", "fa3", "triton")
PAGES = (1, 16, 64)
KV_TYPES = ("auto", "fp8_e4m3", "fp8_e5m2")
# Prompts that are timed, in tokens.
LENGTHS, LONG = (8192, 32_768, 65_536), 131_072
# SGLang would run it on triton instead (0.5.21, `_attention_backend_fa3_fp8_fallback`).
NOT_TAKEN = ("fa3", "fp8_e5m2")
# As presift.target.sglang_plugin.support words it.
QUANTISED, FULL_PREFILL = "quantised KV cache", "full CUDA graphs of the prefill"


@dataclass(frozen=True, slots=True)
class Configuration:
    """An engine and what it is started for. `refusal`: why presift is expected to serve no KV dropping on it.

    `backend` None: SGLang's choice for the GPU. `more` are further arguments of `sglang.Engine`. `limit_s`: after how
    many seconds it is ended. With a `shape` (`gpu.engines`) prompts of these `lengths` are timed, instead of checks.
    """

    name: str
    backend: str | None = None
    cuda_graphs: bool = True
    overlap: bool = True
    page_tokens: int = 1
    kv_type: str = "auto"
    tensor_parallel: int = 1
    refusal: str = ""
    shape: str = ""
    lengths: tuple[int, ...] = ()
    limit_s: float = 200.0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def factors(self) -> tuple[Any, ...]:
        """Backend, CUDA graphs, overlap schedule, page size, KV data type."""
        return (self.backend, self.cuda_graphs, self.overlap, self.page_tokens, self.kv_type)

    @property
    def runs_alone(self) -> bool:
        """Whether nothing else may use the GPUs: it is timed, or SGLang wants equal free memory on all of them."""
        return bool(self.shape) or self.tensor_parallel > 1

    @property
    def summary(self) -> str:
        """The options in a few words."""
        graphs, overlap = "graphs" if self.cuda_graphs else "eager", "overlap" if self.overlap else "no overlap"
        parts = [self.backend or "default backend", graphs, overlap, f"page {self.page_tokens}"]
        if self.kv_type != "auto":
            parts.append(self.kv_type)
        if self.tensor_parallel > 1:
            parts.append(f"TP {self.tensor_parallel}")
        parts += [f"prefill {backend}" for backend in self.more.values()]
        return ", ".join(parts)

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of `sglang.Engine` that presift has no setting for."""
        arguments: dict[str, Any] = {"disable_overlap_schedule": not self.overlap, "kv_cache_dtype": self.kv_type}
        if not self.cuda_graphs:
            arguments["disable_cuda_graph"] = True
        return arguments | self.more


def timings(shape: str, *, gpus: int, long: bool = False) -> Configuration:
    """Full against spec_kv, on a model of this shape. The small one fits one GPU; the large one is divided over all of
    `gpus`, as far as they are a power of two and not more than its KV heads."""
    ranks = 1 if shape == "8b" else 1 << min(3, max(1, gpus).bit_length() - 1)
    lengths, limit_s = ((*LENGTHS, LONG), 420.0) if long else (LENGTHS, 270.0)
    name = f"timings-{shape}" + ("-128k" if long else "")
    return Configuration(name, tensor_parallel=ranks, shape=shape, lengths=lengths, limit_s=limit_s)


def configurations(timed: Configuration) -> list[Configuration]:
    """All of them, in the order in which they run."""
    eager, no_overlap = {"cuda_graphs": False}, {"overlap": False}
    return [
        # As SGLang runs by default on Hopper; on older GPUs, but for the overlap; and with the largest pages.
        Configuration("fa3", "fa3"),
        Configuration("flashinfer", "flashinfer", **no_overlap),
        Configuration("triton-64", "triton", page_tokens=64, **no_overlap),
        timed,
        # Each rank has heads of its own.
        Configuration("tp2", tensor_parallel=2),
        # The simplest scheduling there is: if only this one passes, graphs or the overlap are at fault.
        Configuration("triton", "triton", **eager, **no_overlap),
        # The rest of the nine.
        Configuration("flashinfer-64", "flashinfer", page_tokens=64),
        Configuration("fa3-64", "fa3", page_tokens=64, **eager),
        Configuration("flashinfer-16", "flashinfer", page_tokens=16, **eager),
        Configuration("fa3-16", "fa3", page_tokens=16, **no_overlap),
        Configuration("triton-16", "triton", page_tokens=16),
        # Each backend with each type that it takes.
        _quantised("fa3-e4m3", "fa3", "fp8_e4m3", page_tokens=16, **eager, **no_overlap),
        _quantised("flashinfer-e5m2", "flashinfer", "fp8_e5m2", page_tokens=64),
        _quantised("triton-e4m3", "triton", "fp8_e4m3", page_tokens=64),
        _quantised("triton-e5m2", "triton", "fp8_e5m2", page_tokens=16, **eager),
        _quantised("flashinfer-e4m3", "flashinfer", "fp8_e4m3"),
        _quantised("triton-e5m2-1", "triton", "fp8_e5m2", **no_overlap),
        # The other CUDA graphs of the prefill; in a replay of the full ones no Python runs.
        Configuration("piecewise", more={"cuda_graph_backend_prefill": "tc_piecewise"}),
        Configuration("full-prefill", refusal=FULL_PREFILL, more={"cuda_graph_backend_prefill": "full"}),
    ]


def _quantised(name: str, backend: str, kv_type: str, **others: Any) -> Configuration:
    return Configuration(name, backend, kv_type=kv_type, refusal=QUANTISED, limit_s=150.0, **others)
