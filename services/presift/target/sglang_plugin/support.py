"""Which SGLang versions, models and modes the plugin supports. Models and modes that are untested are refused."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from presift.target.sglang_plugin.sglang_names import TESTED, is_tested, is_too_old
from presift.target.sglang_plugin.sglang_source import SglangSource
from presift.target.sglang_plugin.used_names import plugin_names


def unsupported_sglang(sglang: str) -> str | None:
    """Why a version of SGLang is not supported; None if it is.

    The self-check finds out whether an untested version drops KV correctly.
    """
    if is_too_old(sglang):
        return f"SGLang {sglang} is not supported; supported: {TESTED[0]} and newer"
    return None


def missing_names(sglang: str) -> str | None:
    """Why an untested version is refused: the names that it lacks. None if it has all that dropping KV needs.

    The self-check would not notice: it neither renews nor aborts, and an error there ends the scheduler.
    """
    if is_tested(sglang) or is_too_old(sglang):
        return None
    missing = _undefined(plugin_names(sglang))
    return f"SGLang {sglang} is untested and lacks {', '.join(missing)}" if missing else None


def _undefined(paths: Iterable[str]) -> list[str]:
    """Those that the installed SGLang does not define where they say."""
    package = find_spec("sglang")
    if package is None or package.origin is None:
        return list(paths)
    source = SglangSource(Path(package.origin).parents[1])
    return [path for path in paths if not source.statements(path)]


def unsupported_scheduler(scheduler: Any) -> str | None:
    """Why KV dropping is not supported with a scheduler's model, cache or mode; None if it is."""
    try:
        return next((reason for reason, applies in _unsupported_features(scheduler) if applies), None)
    except Exception as error:  # an unknown scheduler must not end the process
        return f"the scheduler's configuration cannot be read: {type(error).__name__}: {error}"


def _unsupported_features(scheduler: Any) -> list[tuple[str, bool]]:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache  # noqa: PLC0415
    from sglang.srt.runtime_context import get_exec, get_parallel  # noqa: PLC0415

    model, arguments, tree = scheduler.model_config, scheduler.server_args, scheduler.tree_cache
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    layers = _attention_layers(scheduler)
    layout, is_linked = getattr(pool, "kv_cache_layout", None), bool(scheduler.enable_unified_cache_external_linker)
    # ops/sglang/support_table.py reads these lists for the table in README.md.
    options = [
        # By virtual slots, so that the plugin would write into other requests' pages.
        ("unified memory (--enable-unified-memory)", bool(scheduler.enable_unified_memory)),
        ("hierarchical sparse attention (--enable-hisparse)", bool(scheduler.enable_hisparse)),
        # Entries would go to a store that engines with other models share.
        ("a linked external cache (--enable-unified-cache-external-linker)", is_linked),
        # Its parts interleave, but the plugin notes the rows of one pass at a time.
        ("PD multiplexing (--enable-pdmux)", bool(scheduler.enable_pdmux)),
        # Half a batch is computed at a time, but the rows are noted for the whole batch.
        ("two-batch overlap (--enable-two-batch-overlap)", bool(get_exec().overlap.enable_two_batch_overlap)),
        # No Python runs in a replay, so that nothing is scored.
        (
            "full CUDA graphs of the prefill (--cuda-graph-backend-prefill full)",
            get_exec().graph.cuda_graph_config.prefill.backend == "full",
        ),
    ]
    caches = [
        ("the radix cache is disabled or of an unsupported kind", type(tree) is not UnifiedRadixCache or tree.disable),
        # Subclasses address their slots in other ways.
        (f"the KV pool is a {type(pool).__name__}, not a MHATokenToKVPool", type(pool) is not MHATokenToKVPool),
        # Others divide the heads of a slot (SGLANG_USE_HND_KVCACHE, SGLANG_AITER_KV_CACHE_LAYOUT).
        (f"the KV cache's layout is {layout}, not nhd", layout != "nhd"),
        ("quantised KV cache", getattr(pool, "store_dtype", None) != getattr(pool, "dtype", None)),
    ]
    modes = [
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("PD disaggregation", str(getattr(arguments, "disaggregation_mode", "null")) != "null"),
        ("hierarchical cache", bool(scheduler.enable_hierarchical_cache)),
        # Ranks that share a head would select different tokens for it.
        ("more tensor-parallel ranks than KV heads", arguments.tp_size > model.get_total_num_kv_heads()),
        # It divides the tokens between ranks.
        ("context parallelism", max(get_parallel().attn_cp_size, get_parallel().dcp_size) > 1),
        # The plugin may be off on another node.
        ("several nodes (--nnodes)", arguments.nnodes > 1),
        ("pipeline parallelism", arguments.pp_size > 1),
        ("data-parallel attention", bool(arguments.enable_dp_attention)),
        ("LoRA", bool(scheduler.enable_lora)),
    ]
    models = [
        ("an encoder-decoder model", bool(model.is_encoder_decoder)),
        ("a multimodal model", bool(model.is_multimodal)),
        ("multi-axis positions", bool(getattr(model, "model_is_mrope", False))),
        ("the model's attention layers are not RadixAttention", len(layers) != model.num_hidden_layers),
        ("sliding-window attention", any((each.sliding_window_size or -1) > -1 for each in layers)),
        ("chunked attention (Llama 4)", any(getattr(each, "use_irope", False) for each in layers)),
        ("soft-capped attention", any(each.logit_cap for each in layers)),
        ("cross attention", any(each.is_cross_attention for each in layers)),
    ]
    return options + caches + modes + models


def _attention_layers(scheduler: Any) -> list[Any]:
    from sglang.srt.layers.radix_attention import RadixAttention  # noqa: PLC0415

    model = scheduler.tp_worker.model_runner.model
    return [module for module in model.modules() if isinstance(module, RadixAttention)]
