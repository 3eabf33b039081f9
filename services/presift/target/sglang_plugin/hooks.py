"""The hooks of the plugin, one per SGLang function, each named after it. Ordinary requests pass unchanged.

`sglang_names` says which function each wraps in which version of SGLang.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from presift.core.kv_plan import KvPlan
from presift.target.sglang_plugin import validation
from presift.target.sglang_plugin.attention import ForwardPass
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.entry_builder import EntryBuilder
from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.self_check import SelfCheck
from presift.target.sglang_plugin.sglang_names import cached_prefix, plugin_functions
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, ScoringState, state_of
from presift.target.sglang_plugin.support import missing_names, unsupported_scheduler, unsupported_sglang
from presift.target.sglang_plugin.waiting_queue import QueuedIds


class Plugin:
    """The plugin in one scheduler process, for a version of SGLang. `unsupported`: why it can drop no KV here; None if
    `check` decides.
    """

    def __init__(self, sglang: str) -> None:
        self._sglang = sglang
        self.unsupported: str | None = "no scheduler has started"
        self.builder: EntryBuilder | None = None
        self.check: SelfCheck | None = None
        self._ranks = ALONE
        self._pass = ForwardPass()

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """The hooks by the path of the SGLang function; each gets the original function as its first argument."""
        functions = plugin_functions(self._sglang)
        return {path: getattr(self, hook) for hook, path in functions.items()}

    def around_scheduler_init(self, original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        original(scheduler, *args, **kwargs)
        refusals = (
            unsupported_sglang(self._sglang),
            missing_hooks(self.hooks()),
            missing_names(self._sglang),
            unsupported_scheduler(scheduler),
        )
        own = next((reason for reason in refusals if reason), None)
        self._ranks = Ranks.of(scheduler)
        # What one rank refuses must be refused by all.
        self.unsupported = next((reason for reason in self._ranks.gather(own) if reason), None)
        self.builder = EntryBuilder(scheduler, self._ranks)
        self.check = None if self.unsupported else SelfCheck(scheduler, self.builder, self._ranks)
        self._pass = ForwardPass(self._ranks)

    def around_handle_generate_request(self, original: Any, scheduler: Any, received: Any, **kwargs: Any) -> None:
        parameters = received.sampling_params.custom_params
        if isinstance(parameters, dict) and KEY in parameters:
            if self.check is not None and self.check.is_running:
                self.check.park(received, kwargs)
                return
            try:
                validation.rewrite_request(scheduler, received, self._refusal())
            except Exception as error:
                validation.send_refusal(scheduler, received, validation.as_presift_error(error))
                return
        original(scheduler, received, **kwargs)

    def around_get_new_batch_prefill(self, original: Any, scheduler: Any, running_batch: Any) -> Any:
        if self.builder is None:
            return original(scheduler, running_batch)
        if self.check is not None:
            self.check.step()
        queued = QueuedIds(scheduler.waiting_queue)
        self.builder.clean_up(queued)
        if self.builder.renewals.step(running_batch, queued):
            # A renewal needs less room than what made SGLang stop looking at its queue.
            running_batch.batch_is_full = False
        plan = original(scheduler, running_batch)
        self.builder.renewals.drop_refused()
        if self.builder.start_missing() and plan.batch_to_run is None:
            # An idle scheduler would sleep although its queue has just got a request.
            plan = original(scheduler, plan.running_batch)
        is_stuck = plan.batch_to_run is None and plan.running_batch.is_empty() and scheduler.chunked_req is None
        if is_stuck and scheduler.waiting_queue and self.builder.release_pins():
            # SGLang assumes that a single request always fits, but pinned entries may take the room.
            plan.running_batch.batch_is_full = False
            plan = original(scheduler, plan.running_batch)
            if self.builder.start_missing() and plan.batch_to_run is None:
                plan = original(scheduler, plan.running_batch)
        return plan

    def around_check_decode_mem(self, original: Any, batch: Any, *args: Any, **kwargs: Any) -> bool:
        has_room: bool = original(batch, *args, **kwargs)
        if not has_room and self.builder is not None and self.builder.release_pins():
            # A running request takes precedence over pins of requests that are not admitted yet.
            has_room = original(batch, *args, **kwargs)
        return has_room

    def around_abort_request(self, original: Any, scheduler: Any, received: Any) -> None:
        if self.builder is not None:
            self.builder.requeue_waiting(received.rid, every=received.abort_all)
        if self.check is not None:
            self.check.abort_parked("" if received.abort_all else received.rid)
        original(scheduler, received)
        if self.builder is not None:
            self.builder.pins.release_by_prefix("" if received.abort_all else received.rid)

    def around_get_internal_state(self, original: Any, scheduler: Any, received: Any) -> Any:
        response = original(scheduler, received)
        counts: dict[str, Any] = {} if self.builder is None else self.builder.counts()
        if self.builder is not None:
            counts["ranks_agree"] = all(each == counts for each in self._ranks.gather(counts))
        is_checking = self.check is not None and self.check.is_running
        response.internal_state[KEY] = {"unsupported": self._refusal(), "checking": is_checking, **counts}
        return response

    def _refusal(self) -> str | None:
        return self.unsupported or (None if self.check is None else self.check.reason)

    def around_compute_max_prefix_len(self, original: Any, request: Any, input_len: int) -> int:
        longest: int = original(request, input_len)
        state = state_of(request)
        if isinstance(state, ScoringState):
            # The scoring rows must be computed, so they may not come from the cache.
            rows = state.selector.first_row if state.selector is not None else len(state.caller.prompt) - 1
            longest = min(longest, rows)
        return longest

    def around_add_one_req(self, original: Any, adder: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from sglang.srt.managers.schedule_policy import AddReqResult  # noqa: PLC0415 - in the scheduler alone

        state = state_of(request)
        if self.builder is None or request.to_finish is not None:
            return original(adder, request, *args, **kwargs)
        if not isinstance(state, ScoringState) and self.builder.renewals.needs_row(adder, request):
            return AddReqResult.OTHER
        if isinstance(state, DecodeState) and not state.is_full and cached_prefix(request) < state.kept:
            self.builder.add_missing(request)
            return AddReqResult.CONTINUE
        if isinstance(state, ScoringState):
            admit = self._admit_renewal if state.is_renewal else self._admit_build
            return admit(original, adder, request, state, *args, **kwargs)
        if isinstance(state, DecodeState) and self.builder.begin_answer(request, state):
            # Its cached prefix may be longer now.
            request.init_next_round_input(adder.tree_cache)
        if request.to_finish is not None:
            return AddReqResult.CONTINUE
        result = original(adder, request, *args, **kwargs)
        if isinstance(state, DecodeState) and request in adder.can_run_list:
            request.skip_radix_cache_insert = not state.plan.keep_full_prefix
            self.builder.on_admitted(request, state)
        return result

    def _admit_build(
        self, original: Any, adder: Any, request: Any, state: ScoringState, *args: Any, **kwargs: Any
    ) -> Any:
        """Admit the scoring request of a build, or let it wait for callers whose entries are built."""
        from sglang.srt.managers.schedule_policy import AddReqResult  # noqa: PLC0415 - in the scheduler alone

        assert self.builder is not None
        if not self.builder.has_room_for(state):
            return AddReqResult.CONTINUE
        result = _admit_scoring(original, adder, request, state, *args, **kwargs)
        if request in adder.can_run_list:
            self.builder.on_scoring_admitted(state)
        return result

    def _admit_renewal(
        self, original: Any, adder: Any, request: Any, state: ScoringState, *args: Any, **kwargs: Any
    ) -> Any:
        """Admit the scoring request of a renewal, or skip it: what waits behind it must not wait for it."""
        from sglang.srt.managers.schedule_policy import AddReqResult  # noqa: PLC0415 - in the scheduler alone

        assert self.builder is not None
        if self.builder.renewals.has_prefix(request, state):
            result = _admit_scoring(original, adder, request, state, *args, **kwargs)
            if request in adder.can_run_list or result is not AddReqResult.NO_TOKEN:
                return result
        self.builder.renewals.refuse(request)
        return AddReqResult.CONTINUE

    def around_add_chunked_req(self, original: Any, adder: Any, request: Any) -> Any:
        state = state_of(request)
        if not isinstance(state, ScoringState):
            return original(adder, request)
        with _counting_entry_tokens(request, state):
            return original(adder, request)

    def around_init_new(self, original: Any, kind: type, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
        forward = original(kind, batch, runner, *args, **kwargs)
        self._pass.begin(forward, batch, runner)
        return forward

    def around_forward(self, original: Any, backend: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(backend, *args, **kwargs)
        if not self._pass.has_scoring_rows:
            return result
        arguments_by_name = dict(zip(("q", "k", "v", "layer"), args, strict=False)) | kwargs
        self._pass.on_attention(arguments_by_name["q"], arguments_by_name["layer"])
        return result

    def around_logits_forward(self, original: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(processor, *args, **kwargs)
        if self._pass.has_lookahead_rows:
            names = ("input_ids", "hidden_states", "lm_head", "logits_metadata")
            given = dict(zip(names, args, strict=False)) | kwargs
            self._pass.on_logits(processor, *(given[name] for name in names[1:]))
        return result

    def around_process_batch_result_prefill(self, original: Any, processor: Any, batch: Any, result: Any) -> Any:
        for request in batch.reqs:
            state = state_of(request)
            if self.builder is not None and isinstance(state, ScoringState) and _is_just_read(request, state):
                if result.copy_done is not None:
                    result.copy_done.synchronize()
                self.builder.finish_scoring(request, state)
        return original(processor, batch, result)

    def around_stream_output(self, original: Any, streamer: Any, requests: Any, *args: Any, **kwargs: Any) -> Any:
        if self.check is not None:
            requests = self.check.without_own(requests)
        states = [state_of(request) for request in requests]
        if any(states):
            for request, state in zip(requests, states, strict=True):
                _attach_report(request, state)
            pairs = zip(requests, states, strict=True)
            requests = [request for request, state in pairs if not isinstance(state, ScoringState)]
        return original(streamer, requests, *args, **kwargs)

    def around_maybe_cache_unfinished_req(self, original: Any, request: Any, tree: Any, **kwargs: Any) -> None:
        state = state_of(request)
        if isinstance(state, DecodeState | ScoringState) and (
            request.skip_radix_cache_insert or not _plan(state).keep_full_prefix
        ):
            # The request keeps its own KV and publishes none of it to the tree: nor does one that has failed. SGLang
            # 0.5.21 would read the same chunk of that again and again.
            tree.advance_unpublished_req(request, **kwargs)
        else:
            original(request, tree, **kwargs)

    def around_insert_req(self, original: Any, tree: Any, request: Any, *, up_to: int, **kwargs: Any) -> Any:
        state = state_of(request)
        if isinstance(state, ScoringState):
            # The lookahead only serves KV selection and is not cached.
            up_to = min(up_to, max(len(state.caller.prompt), request.kv.cache_protected_len))
        return original(tree, request, up_to=up_to, **kwargs)

    def around_reset(self, original: Any, tree: Any, *args: Any, **kwargs: Any) -> Any:
        if self.builder is not None:
            self.builder.on_tree_reset()
        return original(tree, *args, **kwargs)


def missing_hooks(hooks: Mapping[str, Callable[..., Any]]) -> str | None:
    """Which of `hooks` are not in place in this process, as a reason; None if all are. SGLang would only log it."""
    missing = [target for target, hook in hooks.items() if not _is_in_place(target, hook)]
    return f"SGLang functions not hooked: {', '.join(missing)}" if missing else None


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
    """Whether `function` is SGLang's wrapper of `hook`: the wrapper closes over the hook that it calls."""
    for cell in getattr(getattr(function, "__func__", function), "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            if cell.cell_contents == hook:
                return True
    return False


def _admit_scoring(original: Any, adder: Any, request: Any, state: ScoringState, *args: Any, **kwargs: Any) -> Any:
    with _counting_entry_tokens(request, state):
        result = original(adder, request, *args, **kwargs)
    if request in adder.can_run_list:
        state.reset()
    return result


@contextmanager
def _counting_entry_tokens(request: Any, state: ScoringState) -> Iterator[None]:
    """While SGLang checks the pool, count the entry as tokens to generate, so that the request waits if it is full."""
    request.sampling_params.max_new_tokens = state.caller.kept + 1
    try:
        yield
    finally:
        request.sampling_params.max_new_tokens = 0


def _is_just_read(request: Any, state: ScoringState) -> bool:
    ended = request.finished() or request.to_finish is not None or request.is_retracted
    return not (ended or state.is_finished or request.inflight_middle_chunks > 0)


def _plan(state: DecodeState | ScoringState) -> KvPlan:
    return state.caller.plan if isinstance(state, ScoringState) else state.plan


def _attach_report(request: Any, state: Any) -> None:
    """Send the report with the first token, and with the last one again: counts have changed."""
    if not isinstance(state, DecodeState | PassthroughState) or state.report is None:
        return
    if request.customized_info is None:
        if isinstance(state, PassthroughState):
            state.report.cached_tokens = request.cached_tokens
        request.customized_info = {KEY: [state.report.values()]}
    # SGLang pairs values and tokens, so those between need values too.
    values = request.customized_info[KEY]
    values.extend([None] * (len(request.output_ids_through_stop) - len(values)))
    if request.finished():
        # The mask is large, and was sent with the first token.
        unsent = None if len(values) > 1 else state.report.kv_mask
        values[-1] = state.report.values() | {"kv_mask": unsent}
