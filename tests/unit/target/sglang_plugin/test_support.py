"""Each unsupported version, model or mode is refused with its own reason."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

from presift.models.torchvision_ops import declare_missing
from presift.target.sglang_plugin import support
from presift.target.sglang_plugin.sglang_names import TESTED, installed
from presift.target.sglang_plugin.support import (
    _unsupported_features,
    missing_names,
    unsupported_scheduler,
    unsupported_sglang,
)
from presift.target.sglang_plugin.used_names import plugin_names

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("version", [*TESTED, "0.5.21+cpu", "0.5.21.post1", "0.5.99rc1", "0.6.0", "1.0"])
def test_tested_and_newer_sglangs_are_supported(version: str) -> None:
    assert unsupported_sglang(version) is None


@pytest.mark.parametrize("version", ["0.5.20", "0.5.21rc1", "0.5.20.post3", "unknown"])
def test_an_older_sglang_is_refused(version: str) -> None:
    assert unsupported_sglang(version) == f"SGLang {version} is not supported; supported: 0.5.21 and newer"


@pytest.fixture
def untested() -> str:
    """A version after the installed one, which has the same names."""
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    return f"{Version(installed()).public}.post9"


def test_an_untested_sglang_with_all_names_is_supported(untested: str) -> None:
    assert missing_names(untested) is None


RENAMED = ["sglang.srt.managers.schedule_batch.Req.renamed", "sglang.srt.no_module.f"]


def test_names_that_an_untested_sglang_lacks_are_the_reason(untested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "plugin_names", lambda version: [*plugin_names(version), *RENAMED])
    assert missing_names(untested) == f"SGLang {untested} is untested and lacks {', '.join(RENAMED)}"
    assert missing_names(TESTED[-1]) is None


@pytest.mark.parametrize("version", ["unknown", "0.5.20"])
def test_a_version_that_is_refused_anyway_is_not_read(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "plugin_names", None)
    assert missing_names(version) is None


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that can drop KV: SGLang's own classes, never initialised."""
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    from sglang.srt import runtime_context
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    tree, pool = object.__new__(UnifiedRadixCache), object.__new__(MHATokenToKVPool)
    tree.disable, pool.dtype, pool.store_dtype = False, torch.bfloat16, torch.bfloat16
    pool.kv_cache_layout = "nhd"
    execution = SimpleNamespace(
        overlap=SimpleNamespace(enable_two_batch_overlap=False),
        graph=SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(backend="breakable"))),
    )
    parallel = SimpleNamespace(attn_cp_size=1, dcp_size=1)
    monkeypatch.setattr(runtime_context, "get_exec", lambda: execution)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: parallel)
    layers = []
    for _ in range(2):
        layer = RadixAttention.__new__(RadixAttention)
        torch.nn.Module.__init__(layer)
        layer.sliding_window_size, layer.logit_cap, layer.is_cross_attention = -1, 0.0, False
        layer.use_irope = False
        layers.append(layer)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), *layers)
    return SimpleNamespace(
        tree_cache=tree,
        token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: pool),
        model_config=SimpleNamespace(
            is_encoder_decoder=False,
            is_multimodal=False,
            model_is_mrope=False,
            num_hidden_layers=2,
            get_total_num_kv_heads=lambda: 2,
        ),
        server_args=SimpleNamespace(
            disaggregation_mode="null", tp_size=1, dp_size=1, pp_size=1, enable_dp_attention=False, nnodes=1
        ),
        spec_algorithm=SimpleNamespace(is_none=lambda: True),
        enable_hierarchical_cache=False,
        enable_unified_memory=False,
        enable_hisparse=False,
        enable_unified_cache_external_linker=False,
        enable_pdmux=False,
        execution=execution,
        parallel=parallel,
        enable_lora=False,
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(model=model)),
        layers=layers,
        pool=pool,
    )


def test_a_scheduler_that_can_drop_kv(scheduler: Any) -> None:
    assert unsupported_scheduler(scheduler) is None


def _other_tree(scheduler: Any) -> None:
    class Other(type(scheduler.tree_cache)):  # type: ignore[misc]
        pass

    scheduler.tree_cache = object.__new__(Other)
    scheduler.tree_cache.disable = False


def _other_pool(scheduler: Any) -> None:
    pool = SimpleNamespace(dtype=1, store_dtype=1, kv_cache_layout="nhd")
    scheduler.token_to_kv_pool_allocator = SimpleNamespace(get_kvcache=lambda: pool)


def _derived_pool(scheduler: Any) -> None:
    class Unified(type(scheduler.pool)):  # type: ignore[misc]
        pass

    pool = object.__new__(Unified)
    pool.dtype, pool.store_dtype, pool.kv_cache_layout = 1, 1, "nhd"
    scheduler.token_to_kv_pool_allocator = SimpleNamespace(get_kvcache=lambda: pool)


def _set(path: str, value: Any) -> Any:
    *names, last = path.split(".")

    def change(scheduler: Any) -> None:
        place = scheduler
        for name in names:
            place = place[int(name)] if name.isdigit() else getattr(place, name)
        setattr(place, last, value)

    return change


UNSUPPORTED = {
    "the radix cache is disabled or of an unsupported kind": [_set("tree_cache.disable", True), _other_tree],
    "unified memory (--enable-unified-memory)": [_set("enable_unified_memory", True)],
    "hierarchical sparse attention (--enable-hisparse)": [_set("enable_hisparse", True)],
    "a linked external cache (--enable-unified-cache-external-linker)": [
        _set("enable_unified_cache_external_linker", True)
    ],
    "PD multiplexing (--enable-pdmux)": [_set("enable_pdmux", True)],
    "two-batch overlap (--enable-two-batch-overlap)": [_set("execution.overlap.enable_two_batch_overlap", True)],
    "full CUDA graphs of the prefill (--cuda-graph-backend-prefill full)": [
        _set("execution.graph.cuda_graph_config.prefill.backend", "full")
    ],
    "the KV pool is a SimpleNamespace, not a MHATokenToKVPool": [_other_pool],
    "the KV pool is a Unified, not a MHATokenToKVPool": [_derived_pool],
    "the KV cache's layout is hnd, not nhd": [_set("pool.kv_cache_layout", "hnd")],
    "the KV cache's layout is vectorized_5d, not nhd": [_set("pool.kv_cache_layout", "vectorized_5d")],
    "quantised KV cache": [_set("pool.store_dtype", torch.uint8)],
    "speculative decoding": [_set("spec_algorithm.is_none", lambda: False)],
    "PD disaggregation": [_set("server_args.disaggregation_mode", mode) for mode in ("prefill", "decode")],
    "hierarchical cache": [_set("enable_hierarchical_cache", True)],
    "more tensor-parallel ranks than KV heads": [_set("server_args.tp_size", 4)],
    "context parallelism": [_set("parallel.attn_cp_size", 2), _set("parallel.dcp_size", 2)],
    "several nodes (--nnodes)": [_set("server_args.nnodes", 2)],
    "pipeline parallelism": [_set("server_args.pp_size", 2)],
    "data-parallel attention": [_set("server_args.enable_dp_attention", True)],
    "LoRA": [_set("enable_lora", True)],
    "an encoder-decoder model": [_set("model_config.is_encoder_decoder", True)],
    "a multimodal model": [_set("model_config.is_multimodal", True)],
    "multi-axis positions": [_set("model_config.model_is_mrope", True)],
    "the model's attention layers are not RadixAttention": [
        _set("model_config.num_hidden_layers", count) for count in (0, 3)
    ],
    "sliding-window attention": [_set("layers.1.sliding_window_size", 4096)],
    "chunked attention (Llama 4)": [_set("layers.0.use_irope", True)],
    "soft-capped attention": [_set("layers.1.logit_cap", 30.0)],
    "cross attention": [_set("layers.1.is_cross_attention", True)],
}


@pytest.mark.parametrize(
    ("reason", "change"), [(reason, change) for reason, changes in UNSUPPORTED.items() for change in changes]
)
def test_each_unsupported_feature_is_the_only_reason(scheduler: Any, reason: str, change: Any) -> None:
    change(scheduler)
    assert [name for name, applies in _unsupported_features(scheduler) if applies] == [reason]
    assert unsupported_scheduler(scheduler) == reason


def test_every_unsupported_feature_has_a_test(scheduler: Any) -> None:
    names = {reason for reason, _ in _unsupported_features(scheduler)}
    found = {"SimpleNamespace": "MHATokenToKVPool", "Unified": "MHATokenToKVPool", "hnd": "nhd", "vectorized_5d": "nhd"}
    tested = {" ".join(found.get(word.rstrip(","), word.rstrip(",")) for word in each.split()) for each in UNSUPPORTED}
    assert tested == {name.replace(",", "") for name in names}


@pytest.mark.parametrize("backend", ["breakable", "tc_piecewise", "disabled"])
def test_prefills_that_run_python_are_supported(scheduler: Any, backend: str) -> None:
    scheduler.execution.graph.cuda_graph_config.prefill.backend = backend
    assert unsupported_scheduler(scheduler) is None


def test_replicas_and_as_many_ranks_as_kv_heads_are_supported(scheduler: Any) -> None:
    scheduler.server_args.tp_size = scheduler.server_args.dp_size = 2
    assert unsupported_scheduler(scheduler) is None


@pytest.mark.parametrize("size", [None, -1])
def test_no_sliding_window_has_two_forms(scheduler: Any, size: int | None) -> None:
    scheduler.layers[0].sliding_window_size = size
    assert unsupported_scheduler(scheduler) is None
