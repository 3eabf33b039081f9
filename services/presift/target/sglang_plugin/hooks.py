"""Every function of SGLang that the plugin hooks, and what it does there. Ordinary requests pass through unchanged."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from presift.target.sglang_plugin import validation
from presift.target.sglang_plugin.attention import Pass
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.entry_builder import EntryBuilder
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, ScoringState, state_of
from presift.target.sglang_plugin.support import why_not_this_scheduler, why_not_this_sglang


class Plugin:
    """The plugin in one scheduler process. `unsupported` is why it refuses requests; None while it serves them."""

    def __init__(self) -> None:
        self.unsupported: str | None = "no scheduler has started"
        self.chain: EntryBuilder | None = None
        self._pass = Pass()

    def around(self) -> dict[str, Callable[..., Any]]:
        """The hooks by target; each takes the original function first."""
        srt = "sglang.srt."
        return {
            f"{srt}managers.scheduler.Scheduler.__init__": self._scheduler_made,
            f"{srt}managers.scheduler.Scheduler.handle_generate_request": self._request_came,
            f"{srt}managers.scheduler.Scheduler.get_new_batch_prefill": self._batch_wanted,
            f"{srt}managers.scheduler.Scheduler.abort_request": self._abort_came,
            f"{srt}managers.scheduler.Scheduler.get_internal_state": self._state_asked,
            f"{srt}managers.schedule_batch.Req._compute_max_prefix_len": self._prefix_capped,
            f"{srt}managers.schedule_batch.ScheduleBatch.check_decode_mem": self._decode_room_asked,
            f"{srt}managers.schedule_policy.PrefillAdder.add_one_req": self._admission_asked,
            f"{srt}managers.schedule_policy.PrefillAdder.add_chunked_req": self._next_chunk_asked,
            f"{srt}model_executor.forward_batch_info.ForwardBatch.init_new": self._pass_begun,
            f"{srt}layers.attention.base_attn_backend.AttentionBackend.forward": self._attended,
            f"{srt}managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
            ".process_batch_result_prefill": self._prompt_read,
            f"{srt}managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output": self._streamed,
            f"{srt}mem_cache.common.maybe_cache_unfinished_req": self._chunk_cached,
            f"{srt}mem_cache.unified_radix_cache.UnifiedRadixCache.insert_req": self._inserted,
            f"{srt}mem_cache.unified_radix_cache.UnifiedRadixCache.reset": self._tree_reset,
        }

    def _scheduler_made(self, original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        original(scheduler, *args, **kwargs)
        self.unsupported = why_not_this_sglang() or not_hooked(self.around()) or why_not_this_scheduler(scheduler)
        self.chain = EntryBuilder(scheduler)

    def _request_came(self, original: Any, scheduler: Any, received: Any, **kwargs: Any) -> None:
        parameters = received.sampling_params.custom_params
        if isinstance(parameters, dict) and KEY in parameters:
            try:
                validation.admit(scheduler, received, self.unsupported)
            except Exception as error:
                validation.refuse(scheduler, received, validation.checked(error))
                return
        original(scheduler, received, **kwargs)

    def _batch_wanted(self, original: Any, scheduler: Any, running_batch: Any) -> Any:
        if self.chain is None:
            return original(scheduler, running_batch)
        self.chain.tidy()
        plan = original(scheduler, running_batch)
        if self.chain.start_missing() and plan.batch_to_run is None:
            # Else an idle scheduler would go to sleep over the request that was just put into its queue.
            plan = original(scheduler, plan.running_batch)
        is_stuck = plan.batch_to_run is None and plan.running_batch.is_empty() and scheduler.chunked_req is None
        if is_stuck and scheduler.waiting_queue and self.chain.make_room():
            # SGLang counts on one request alone always fitting; what is leased to others may be in its way.
            plan.running_batch.batch_is_full = False
            plan = original(scheduler, plan.running_batch)
            if self.chain.start_missing() and plan.batch_to_run is None:
                plan = original(scheduler, plan.running_batch)
        return plan

    def _decode_room_asked(self, original: Any, batch: Any, *args: Any, **kwargs: Any) -> bool:
        has_room: bool = original(batch, *args, **kwargs)
        if not has_room and self.chain is not None and self.chain.make_room():
            # A running request goes before those that are not admitted yet.
            has_room = original(batch, *args, **kwargs)
        return has_room

    def _abort_came(self, original: Any, scheduler: Any, received: Any) -> None:
        if self.chain is not None:
            self.chain.unpark(received.rid, every=received.abort_all)
        original(scheduler, received)
        if self.chain is not None:
            self.chain.leases.release_matching("" if received.abort_all else received.rid)

    def _state_asked(self, original: Any, scheduler: Any, received: Any) -> Any:
        answer = original(scheduler, received)
        chain = self.chain
        counts = {} if chain is None else chain.counts()
        answer.internal_state[KEY] = {"unsupported": self.unsupported, **counts}
        return answer

    def _prefix_capped(self, original: Any, request: Any, input_len: int) -> int:
        longest: int = original(request, input_len)
        state = state_of(request)
        if isinstance(state, ScoringState):
            # The rows that score must be computed, and only prompt tokens need be cached.
            rows = state.scores.first_row if state.scores is not None else len(state.of.prompt) - 1
            longest = min(longest, rows)
        return longest

    def _admission_asked(self, original: Any, adder: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from sglang.srt.managers.schedule_policy import AddReqResult  # noqa: PLC0415 - in the scheduler alone

        state = state_of(request)
        if self.chain is None or state is None or request.to_finish is not None:
            return original(adder, request, *args, **kwargs)
        if isinstance(state, DecodeState) and len(request.prefix_indices) < state.kept:
            self.chain.entry_is_missing(request)
            return AddReqResult.CONTINUE
        if isinstance(state, ScoringState):
            return _admit_scoring(original, adder, request, state, *args, **kwargs)
        result = original(adder, request, *args, **kwargs)
        if isinstance(state, DecodeState) and request in adder.can_run_list:
            request.skip_radix_cache_insert = not state.plan.keep_full_prefix
            self.chain.admitted(request, state)
        return result

    def _next_chunk_asked(self, original: Any, adder: Any, request: Any) -> Any:
        state = state_of(request)
        if not isinstance(state, ScoringState):
            return original(adder, request)
        with _as_if_generating(request, state):
            return original(adder, request)

    def _pass_begun(self, original: Any, kind: type, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
        forward = original(kind, batch, runner, *args, **kwargs)
        self._pass.begin(forward, batch, runner)
        return forward

    def _attended(self, original: Any, backend: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(backend, *args, **kwargs)
        if self._pass.is_plain:
            return result
        named = dict(zip(("q", "k", "v", "layer"), args, strict=False)) | kwargs
        self._pass.attended(named["q"], named["layer"])
        return result

    def _prompt_read(self, original: Any, processor: Any, batch: Any, result: Any) -> Any:
        for request in batch.reqs:
            state = state_of(request)
            if self.chain is not None and isinstance(state, ScoringState) and _has_been_read(request, state):
                if result.copy_done is not None:
                    result.copy_done.synchronize()
                self.chain.settle(request, state)
        return original(processor, batch, result)

    def _streamed(self, original: Any, streamer: Any, requests: Any, *args: Any, **kwargs: Any) -> Any:
        states = [state_of(request) for request in requests]
        if any(states):
            for request, state in zip(requests, states, strict=True):
                _attach_report(request, state)
            pairs = zip(requests, states, strict=True)
            requests = [request for request, state in pairs if not isinstance(state, ScoringState)]
        return original(streamer, requests, *args, **kwargs)

    def _chunk_cached(self, original: Any, request: Any, tree: Any, **kwargs: Any) -> None:
        state = state_of(request)
        if isinstance(state, DecodeState | ScoringState) and not _plan(state).keep_full_prefix:
            # Goes on with its own KV, and leaves nothing of it to the tree.
            tree.advance_unpublished_req(request, **kwargs)
        else:
            original(request, tree, **kwargs)

    def _inserted(self, original: Any, tree: Any, request: Any, *, up_to: int, **kwargs: Any) -> Any:
        state = state_of(request)
        if isinstance(state, ScoringState):
            # The lookahead was only to choose by.
            up_to = min(up_to, max(len(state.of.prompt), request.kv.cache_protected_len))
        return original(tree, request, up_to=up_to, **kwargs)

    def _tree_reset(self, original: Any, tree: Any, *args: Any, **kwargs: Any) -> Any:
        if self.chain is not None:
            self.chain.forget()
        return original(tree, *args, **kwargs)


def not_hooked(hooks: Mapping[str, Callable[..., Any]]) -> str | None:
    """The reason, if one of `hooks` is not in place in this process: SGLang itself would only log it."""
    missing = [target for target, hook in hooks.items() if not _is_in_place(target, hook)]
    return f"not hooked: {', '.join(missing)}" if missing else None


def _is_in_place(target: str, hook: Callable[..., Any]) -> bool:
    path, _, name = target.rpartition(".")
    try:
        function = getattr(pkgutil.resolve_name(path), name, None)
    except (ImportError, AttributeError):
        return False
    while function is not None and not _closes_over(function, hook):
        function = getattr(function, "__wrapped__", None)
    return function is not None


def _closes_over(function: Any, hook: Callable[..., Any]) -> bool:
    """SGLang's wrapper closes over the hook that it calls."""
    for cell in getattr(getattr(function, "__func__", function), "__closure__", None) or ():
        with suppress(ValueError):  # an empty one
            if cell.cell_contents == hook:
                return True
    return False


def _admit_scoring(original: Any, adder: Any, request: Any, state: ScoringState, *args: Any, **kwargs: Any) -> Any:
    with _as_if_generating(request, state):
        result = original(adder, request, *args, **kwargs)
    if request in adder.can_run_list and state.scores is not None:
        state.scores.restart()
    return result


@contextmanager
def _as_if_generating(request: Any, state: ScoringState) -> Iterator[None]:
    """While SGLang counts, the entry is what the request will generate: so a full pool makes it wait."""
    request.sampling_params.max_new_tokens = state.of.kept + 1
    try:
        yield
    finally:
        request.sampling_params.max_new_tokens = 0


def _has_been_read(request: Any, state: ScoringState) -> bool:
    ended = request.finished() or request.to_finish is not None or request.is_retracted
    return not (ended or state.is_settled or request.inflight_middle_chunks > 0)


def _plan(state: DecodeState | ScoringState) -> Any:
    return state.of.plan if isinstance(state, ScoringState) else state.plan


def _attach_report(request: Any, state: Any) -> None:
    if (
        not isinstance(state, DecodeState | PassthroughState)
        or state.report is None
        or request.customized_info is not None
    ):
        return
    if isinstance(state, PassthroughState):
        state.report.cached_tokens = request.cached_tokens
    request.customized_info = {KEY: [{name: getattr(state.report, name) for name in state.report.__slots__}]}
