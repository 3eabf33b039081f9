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
QUANTISED = "quantised KV cache"


@dataclass(frozen=True, slots=True)
class Configuration:
    """An engine and what it is started for. `refusal`: why presift is expected to serve no KV dropping on it.

    `backend` None: SGLang's choice for the GPU. `more` are further arguments of `sglang.Engine`. `limit_s`: after how
    many seconds it is ended. With a `shape` (`gpu.engines`) prompts of these `lengths` are timed, instead of checks.
    """

    name: str
    why: str
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
        return ", ".join(parts)

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of `sglang.Engine` that presift has no setting for."""
        arguments: dict[str, Any] = {"disable_overlap_schedule": not self.overlap, "kv_cache_dtype": self.kv_type}
        if not self.cuda_graphs:
            arguments["disable_cuda_graph"] = True
        return arguments | self.more


def _quantised(name: str, why: str, backend: str, kv_type: str, **others: Any) -> Configuration:
    return Configuration(name, why, backend, kv_type=kv_type, refusal=QUANTISED, limit_s=150.0, **others)


def timings(shape: str, *, gpus: int, long: bool = False) -> Configuration:
    """Full against spec_kv, on a model of this shape. The small one fits one GPU; the large one is divided over all of
    `gpus`, as far as they are a power of two and not more than its KV heads."""
    ranks = 1 if shape == "8b" else 1 << min(3, max(1, gpus).bit_length() - 1)
    lengths, limit_s = ((*LENGTHS, LONG), 420.0) if long else (LENGTHS, 270.0)
    name = f"timings-{shape}" + ("-128k" if long else "")
    why = "full against spec_kv"
    return Configuration(name, why, tensor_parallel=ranks, shape=shape, lengths=lengths, limit_s=limit_s)


def configurations(timed: Configuration) -> list[Configuration]:
    """All of them, in the order in which they run."""
    served = [
        Configuration("flashinfer", "SGLang's default before Hopper, everything on", "flashinfer"),
        Configuration("fa3", "SGLang's default on Hopper", "fa3", overlap=False),
        Configuration("fa3-16", "the same as SGLang runs it, with pages", "fa3", page_tokens=16),
        timed,
        Configuration("triton-64", "runs on any GPU; the largest pages", "triton", page_tokens=64),
        Configuration("tp2", "two ranks, each with heads of its own", tensor_parallel=2),
        Configuration("triton", "nothing that hides a fault", "triton", cuda_graphs=False, overlap=False),
        Configuration("flashinfer-16", "eager, with overlap", "flashinfer", cuda_graphs=False, page_tokens=16),
        Configuration("flashinfer-64", "graphs, without overlap", "flashinfer", overlap=False, page_tokens=64),
        Configuration("fa3-64", "eager, with overlap", "fa3", cuda_graphs=False, page_tokens=64),
        Configuration("triton-16", "graphs, without overlap", "triton", overlap=False, page_tokens=16),
    ]
    quantised = [
        _quantised("flashinfer-e4m3", "is refused", "flashinfer", "fp8_e4m3"),
        _quantised("triton-e5m2", "is refused", "triton", "fp8_e5m2", cuda_graphs=False, page_tokens=16),
        _quantised("fa3-e4m3", "is refused", "fa3", "fp8_e4m3", cuda_graphs=False, overlap=False, page_tokens=16),
        _quantised("flashinfer-e5m2", "is refused", "flashinfer", "fp8_e5m2", page_tokens=64),
        _quantised("triton-e4m3", "is refused", "triton", "fp8_e4m3", page_tokens=64),
        _quantised("triton-e5m2-1", "is refused", "triton", "fp8_e5m2", overlap=False),
    ]
    others = [
        Configuration(
            "piecewise", "the other CUDA graphs of the prefill", more={"cuda_graph_backend_prefill": "tc_piecewise"}
        ),
        Configuration(
            "full-prefill-graphs",
            "no Python runs in their replay",
            refusal="full CUDA graphs of the prefill",
            more={"cuda_graph_backend_prefill": "full"},
        ),
    ]
    return served + quantised + others
