"""Which SGLang versions, models and modes the plugin supports. Models and modes that are untested are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from presift.target.sglang_plugin import UNTESTED
from presift.target.sglang_plugin.sglang_names import TESTED, is_tested, is_too_old


def unsupported_sglang(sglang: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why a version of SGLang is not supported; None if it is, as far as its version tells."""
    if is_too_old(sglang):
        return f"SGLang {sglang} is not supported; supported: {TESTED[0]} and newer"
    if is_tested(sglang) or environment.get(UNTESTED) == "1":
        return None
    return f"SGLang {sglang} is untested; tested: {', '.join(TESTED)}. {UNTESTED}=1 serves it all the same"


def unsupported_scheduler(scheduler: Any) -> str | None:
    """Why KV dropping is not supported with a scheduler's model, cache or mode; None if it is."""
    try:
        return next((reason for reason, applies in _unsupported_features(scheduler) if applies), None)
    except Exception as error:  # an unknown scheduler must not end the process
        return f"the scheduler's configuration cannot be read: {type(error).__name__}: {error}"


def _unsupported_features(scheduler: Any) -> list[tuple[str, bool]]:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache  # noqa: PLC0415

    model, arguments, tree = scheduler.model_config, scheduler.server_args, scheduler.tree_cache
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    layers = _attention_layers(scheduler)
    return [
        ("the radix cache is disabled or of an unsupported kind", type(tree) is not UnifiedRadixCache or tree.disable),
        (f"the KV pool is a {type(pool).__name__}, not a MHATokenToKVPool", not isinstance(pool, MHATokenToKVPool)),
        ("quantised KV cache", getattr(pool, "store_dtype", None) != getattr(pool, "dtype", None)),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("PD disaggregation", str(getattr(arguments, "disaggregation_mode", "null")) != "null"),
        ("hierarchical cache", bool(scheduler.enable_hierarchical_cache)),
        # Ranks would diverge: pins expire by each rank's own clock, and publishing may fail on one rank alone.
        ("tensor parallelism", arguments.tp_size > 1),
        ("data parallelism", arguments.dp_size > 1),
        ("pipeline parallelism", arguments.pp_size > 1),
        ("data-parallel attention", bool(arguments.enable_dp_attention)),
        ("LoRA", bool(scheduler.enable_lora)),
        ("an encoder-decoder model", bool(model.is_encoder_decoder)),
        ("a multimodal model", bool(model.is_multimodal)),
        ("multi-axis positions", bool(getattr(model, "model_is_mrope", False))),
        ("the model's attention layers are not RadixAttention", len(layers) != model.num_hidden_layers),
        ("sliding-window attention", any((each.sliding_window_size or -1) > -1 for each in layers)),
        ("soft-capped attention", any(each.logit_cap for each in layers)),
        ("cross attention", any(each.is_cross_attention for each in layers)),
    ]


def _attention_layers(scheduler: Any) -> list[Any]:
    from sglang.srt.layers.radix_attention import RadixAttention  # noqa: PLC0415

    model = scheduler.tp_worker.model_runner.model
    return [module for module in model.modules() if isinstance(module, RadixAttention)]
