"""What differs between versions of SGLang: the functions that presift hooks, and attributes of SGLang's requests.

To support a new version, add a row to `_CHANGES` with the functions that it renamed or removed (ops/developing.md).
Importing this module imports neither torch nor SGLang.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from packaging.version import InvalidVersion, Version

_CACHE = "mem_cache.unified_radix_cache.UnifiedRadixCache."
_RESULTS = "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor."

# The hooks of `target/sglang/seeds.py`; all others are methods of `Plugin`.
_SEEDING = frozenset(
    {"around_forward_batch_generation", "around_sample_from_probs", "instead_of_multinomial_with_seed"}
)
# The tested versions, oldest first. The first row has each hook and the function of `sglang.srt` that it wraps or
# replaces. The others have what changed since the row above; None: the version needs no such hook.
_CHANGES: dict[str, dict[str, str | None]] = {
    "0.5.21": {
        "around_forward_batch_generation": "managers.tp_worker.TpModelWorker.forward_batch_generation",
        "around_sample_from_probs": "layers.sampler.Sampler._sample_from_probs",
        "instead_of_multinomial_with_seed": "layers.sampler.multinomial_with_seed",
        "around_scheduler_init": "managers.scheduler.Scheduler.__init__",
        "around_handle_generate_request": "managers.scheduler.Scheduler.handle_generate_request",
        "around_get_new_batch_prefill": "managers.scheduler.Scheduler.get_new_batch_prefill",
        "around_abort_request": "managers.scheduler.Scheduler.abort_request",
        "around_get_internal_state": "managers.scheduler.Scheduler.get_internal_state",
        "around_compute_max_prefix_len": "managers.schedule_batch.Req._compute_max_prefix_len",
        "around_check_decode_mem": "managers.schedule_batch.ScheduleBatch.check_decode_mem",
        "around_add_one_req": "managers.schedule_policy.PrefillAdder.add_one_req",
        "around_add_chunked_req": "managers.schedule_policy.PrefillAdder.add_chunked_req",
        "around_init_new": "model_executor.forward_batch_info.ForwardBatch.init_new",
        "around_forward": "layers.attention.base_attn_backend.AttentionBackend.forward",
        "around_logits_forward": "layers.logits_processor.LogitsProcessor.forward",
        "around_process_batch_result_prefill": f"{_RESULTS}process_batch_result_prefill",
        "around_stream_output": "managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
        "around_maybe_cache_unfinished_req": "mem_cache.common.maybe_cache_unfinished_req",
        "around_insert_req": f"{_CACHE}insert_req",
        "around_reset": f"{_CACHE}reset",
    },
    "0.5.22": {
        # `checkpoint_kv_cache`, its successor, can read a prompt in chunks without publishing any.
        "around_maybe_cache_unfinished_req": None,
        "around_insert_req": f"{_CACHE}checkpoint",
    },
    "0.5.23": {},
}
TESTED = tuple(_CHANGES)


def installed() -> str:
    """The version of the SGLang that Python would import. Raises PackageNotFoundError without one."""
    return version("sglang")


def is_too_old(sglang: str) -> bool:
    """Whether a version is older than all tested ones."""
    return _parsed(sglang) < Version(TESTED[0])


def is_tested(sglang: str) -> bool:
    """Whether exactly this release was tested; a local suffix (`+cpu`) makes no difference."""
    return _parsed(sglang).public in TESTED


def engine_name(sglang: str) -> str:
    """The name of the engine for callers."""
    return f"sglang {sglang}" if is_tested(sglang) else f"sglang {sglang} (untested)"


def hooked_functions(sglang: str) -> dict[str, str]:
    """The dotted path of the function that each hook wraps or replaces, in a version of SGLang.

    An untested version has the names of the newest tested one before it.
    """
    release = _parsed(sglang).release
    functions: dict[str, str | None] = {}
    for each, changes in _CHANGES.items():
        if each == TESTED[0] or Version(each).release <= release:
            functions |= changes
    return {hook: f"sglang.srt.{path}" for hook, path in functions.items() if path is not None}


def plugin_functions(sglang: str) -> dict[str, str]:
    """Those of `hooked_functions` that methods of `Plugin` wrap."""
    return {hook: path for hook, path in hooked_functions(sglang).items() if hook not in _SEEDING}


def seeding_functions(sglang: str) -> dict[str, str]:
    """Those of `hooked_functions` that functions of `target/sglang/seeds.py` wrap or replace."""
    return {hook: path for hook, path in hooked_functions(sglang).items() if hook in _SEEDING}


def _parsed(sglang: str) -> Version:
    """The version; 0 for a build that has none, such as "unknown"."""
    try:
        return Version(sglang)
    except InvalidVersion:
        return Version("0")


def cached_prefix(request: Any) -> int:
    """How many tokens of an SGLang request were found in the radix cache, before it is admitted."""
    # Until 0.5.21 SGLang kept the slots themselves.
    return int(request.prefix_len) if hasattr(request, "prefix_len") else len(request.prefix_indices)


def release_prefix(tree: Any, request: Any, row: Any) -> None:
    """Unlock the nodes of the radix cache that a running request holds. It then owns all its slots, `row` int64[n]."""
    if hasattr(request, "prefix_len"):
        tree.unlock(request.lock)
        request.lock, request.prefix_len = None, len(row)
    else:
        from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams  # noqa: PLC0415 - in the scheduler alone

        tree.unpin(request)
        request.lock_receipt, request.prefix_indices = DecLockRefParams(), row
    request.last_node = None
