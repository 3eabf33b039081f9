"""Where the plugin works: which SGLang, which models, which ways of running them. What is not proven is refused."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from packaging.specifiers import SpecifierSet

SUPPORTED_SGLANG = SpecifierSet(">=0.5.21,<0.5.22")


def why_not_this_sglang(installed: str | None = None) -> str | None:
    """The reason why the installed SGLang is not supported; None if it is."""
    installed = installed or version("sglang")
    if SUPPORTED_SGLANG.contains(installed, prereleases=True):
        return None
    return f"SGLang {installed} is not supported; supported: {SUPPORTED_SGLANG}"


def why_not_this_scheduler(scheduler: Any) -> str | None:
    """The reason why a scheduler's model, cache or mode cannot drop KV; None if it can."""
    try:
        return next((reason for reason, applies in _obstacles(scheduler) if applies), None)
    except Exception as error:  # what cannot even be looked at is not supported, and no reason to fail
        return f"this scheduler cannot be examined: {type(error).__name__}: {error}"


def _obstacles(scheduler: Any) -> list[tuple[str, bool]]:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache  # noqa: PLC0415

    model, arguments, tree = scheduler.model_config, scheduler.server_args, scheduler.tree_cache
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    layers = _attention_layers(scheduler)
    return [
        ("the radix cache is switched off or of another kind", type(tree) is not UnifiedRadixCache or tree.disable),
        (f"the KV pool is a {type(pool).__name__}", not isinstance(pool, MHATokenToKVPool)),
        ("KV is stored quantised", getattr(pool, "store_dtype", None) != getattr(pool, "dtype", None)),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("PD disaggregation", str(getattr(arguments, "disaggregation_mode", "null")) != "null"),
        ("hierarchical cache", bool(scheduler.enable_hierarchical_cache)),
        # Leases run by each rank's own clock, and a failure to publish is one rank's alone.
        ("tensor parallelism", arguments.tp_size > 1),
        ("data parallelism", arguments.dp_size > 1),
        ("pipeline parallelism", arguments.pp_size > 1),
        ("data-parallel attention", bool(arguments.enable_dp_attention)),
        ("LoRA", bool(scheduler.enable_lora)),
        ("an encoder-decoder model", bool(model.is_encoder_decoder)),
        ("a multimodal model", bool(model.is_multimodal)),
        ("multi-axis positions", bool(getattr(model, "model_is_mrope", False))),
        ("the model shows no attention layers", len(layers) != model.num_hidden_layers),
        ("sliding-window attention", any((each.sliding_window_size or -1) > -1 for each in layers)),
        ("soft-capped attention", any(each.logit_cap for each in layers)),
        ("cross attention", any(each.is_cross_attention for each in layers)),
    ]


def _attention_layers(scheduler: Any) -> list[Any]:
    from sglang.srt.layers.radix_attention import RadixAttention  # noqa: PLC0415

    model = scheduler.tp_worker.model_runner.model
    return [module for module in model.modules() if isinstance(module, RadixAttention)]
