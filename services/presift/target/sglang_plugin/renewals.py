"""Renewals: while a request generates, its KV is selected anew, by its newest tokens, from the full prefix.

A request of the plugin's own (ScoringState) reads the prompt and what was generated, most of it from the radix cache,
and selects. The selected KV is copied to new slots, which replace the caller's in place (`kv_row.py`): the caller never
leaves the running batch. What does not succeed is skipped and counted, and tried again later.
"""

from __future__ import annotations

import logging
import time
from array import array
from dataclasses import dataclass, replace
from typing import Any

import torch

from presift.core.kv_plan import KvPlan
from presift.core.policies import KvSelection
from presift.core.policies.spec_kv import LEAST_RENEWAL_TOKENS
from presift.core.spans import Span
from presift.target.sglang_plugin.entry_pins import copy_selected
from presift.target.sglang_plugin.kv_row import can_replace_head, replace_head
from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.scoring_request import scoring_request
from presift.target.sglang_plugin.sglang_names import cached_prefix
from presift.target.sglang_plugin.states import DecodeState, ScoringState, state_of
from presift.target.sglang_plugin.waiting_queue import QueuedIds, withdraw

# A renewal takes some steps. For fewer tokens than these it is not begun.
_LEAST_REMAINING = 4
# A fall of coverage from one renewal to the next by more than this shortens the interval: the answer attends to more
# places of the prompt than fit, so that a selection is outdated sooner.
_COVERAGE_FALL = 0.02

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Renewal:
    """One renewal under way: `request` is the caller's, `scoring` the plugin's.

    `tokens` is how many tokens of the caller `scoring` reads. `slots` are the new KV slots, once they are filled, and
    `coverage` is that of their selection.
    """

    request: Any
    scoring: Any
    tokens: int
    retractions: int
    slots: torch.Tensor | None = None
    coverage: float | None = None
    publish_ms: float = 0.0

    @property
    def is_orphaned(self) -> bool:
        """Whether the caller ended or was retracted."""
        return bool(self.request.finished()) or self.request.retraction_count != self.retractions


class Renewals:
    """The renewals under way in one scheduler, by the caller's request id. None when idle."""

    def __init__(self, scheduler: Any, ranks: Ranks = ALONE) -> None:
        self._scheduler = scheduler
        self._ranks = ranks
        self._open: dict[str, Renewal] = {}
        self._refused: list[Any] = []
        # The scoring requests of ended renewals that may still be in SGLang's queue.
        self._needless: list[Any] = []

    def __len__(self) -> int:
        return len(self._open)

    def step(self, running_batch: Any, queued: QueuedIds) -> bool:
        """Put renewed KV in place and start what is due. `running_batch`: all requests that decode next; `queued`:
        those that wait.

        SGLang calls this between two steps, where it may also retract requests. True if a renewal waits in its queue.
        """
        for renewal in list(self._open.values()):
            self._advance(renewal, running_batch, queued)
        self._withdraw_needless()
        is_waiting = any(_is_waiting(renewal, queued) for renewal in self._open.values())
        started = [scoring for request in running_batch.reqs if (scoring := self._start_due(request)) is not None]
        self._scheduler.waiting_queue[:0] = started
        return bool(started) or is_waiting

    def needs_row(self, adder: Any, request: Any) -> bool:
        """Whether `request` would take the last place of SGLang's running requests, which renewals need."""
        running, admitted = adder.running_batch, adder.can_run_list
        if not running.reqs and not admitted:
            return False
        places = self._scheduler.get_num_allocatable_reqs(len(running.reqs), running_batch=running) - len(admitted)
        return places <= 1 and any(_renews(each) for each in (*running.reqs, *admitted, request))

    def has_prefix(self, scoring: Any, state: ScoringState) -> bool:
        """Whether the radix cache still has the prompt from which `scoring` selects."""
        renewal, selector = self._of(scoring), state.selector
        if renewal is None or selector is None:
            return False
        page_tokens: int = self._scheduler.page_size
        needed = min(_prompt_tokens(renewal) - 1, selector.first_row)
        # The cache holds whole pages.
        return cached_prefix(scoring) >= needed // page_tokens * page_tokens

    def refuse(self, scoring: Any) -> None:
        """Skip the renewal of `scoring`, which SGLang cannot admit now. Takes effect in `drop_refused`."""
        self._refused.append(scoring)

    def drop_refused(self) -> None:
        """Take refused requests out of the queue."""
        refused, self._refused = self._refused, []
        for scoring in refused:
            if (renewal := self._of(scoring)) is not None:
                self._skip(renewal)
        self._withdraw_needless()

    def finish_scoring(self, scoring: Any, state: ScoringState) -> None:
        """Copy the KV that `scoring` selected to new slots, for its caller."""
        state.is_finished = True
        renewal = self._of(scoring)
        if renewal is None or renewal.is_orphaned:
            state.release()
            return
        started = time.perf_counter()
        copied = copy_selected(self._scheduler, scoring, state, self._ranks)
        if copied.failure is not None:
            # The answer can go on without a renewal.
            log.warning("presift: renewing KV failed: %s", copied.failure)
        renewal.slots, renewal.coverage = copied.slots, copied.coverage
        renewal.publish_ms = (time.perf_counter() - started) * 1e3
        if renewal.slots is None:
            self._skip(renewal)

    def _of(self, scoring: Any) -> Renewal | None:
        return next((each for each in self._open.values() if each.scoring is scoring), None)

    def _advance(self, renewal: Renewal, batch: Any, queued: QueuedIds) -> None:
        if renewal.is_orphaned:
            self._close(renewal)
        elif renewal.slots is not None:
            self._apply(renewal, batch)
        elif _is_waiting(renewal, queued):
            if self._is_late(renewal):
                self._skip(renewal)
        elif not renewal.scoring.kv.holds_kv:
            # It neither waits nor runs: SGLang has aborted it.
            self._skip(renewal)

    def _is_late(self, renewal: Renewal) -> bool:
        """Whether the next renewal is due before this one, which still waits, could start."""
        state = _decode_state(renewal.request)
        waited = len(renewal.request.output_ids) + len(state.prompt) + state.suffix_tokens - renewal.tokens
        return waited >= _interval(state)

    def _is_due(self, request: Any) -> bool:
        state = state_of(request)
        if not isinstance(state, DecodeState) or state.next_renewal is None or request.rid in self._open:
            return False
        generated = len(request.output_ids)
        remaining = request.sampling_params.max_new_tokens - generated
        is_due = generated >= state.next_renewal
        if not is_due and not state.is_full:
            is_due = state.mentions.observe(request.output_ids, state.plan.policy.renew_window)
        ends = request.finished() or request.to_finish is not None or remaining < _LEAST_REMAINING
        # What the tree holds of the request's row stays until a token was generated behind it.
        owned = state.held_tokens + generated - 1 >= request.kv.cache_protected_len
        return is_due and owned and not ends

    def _start_due(self, request: Any) -> Any:
        """The scoring request of a new renewal, if one is due. An error ends the renewals of this request: the answer
        can go on without them. On several ranks it is raised, because the others may not have it.
        """
        try:
            return self._start(request) if self._is_due(request) else None
        except Exception:
            if self._ranks.are_several:
                raise
            log.exception("presift: starting a renewal failed")
            state = _decode_state(request)
            state.next_renewal = None
            if state.report is not None:
                state.report.renewals_skipped += 1
            return None

    def _start(self, request: Any) -> Any:
        """The scoring request of a new renewal."""
        state = _decode_state(request)
        tokens = all_tokens(request, state)
        scoring = scoring_request(self._scheduler, request, selection(state, tokens), is_renewal=True)
        # A limit on the waiting time counts from now.
        scoring.time_stats.wait_queue_entry_time = 0.0
        scoring.time_stats.set_wait_queue_entry_time()
        self._open[request.rid] = Renewal(request, scoring, len(tokens), request.retraction_count)
        return scoring

    def _apply(self, renewal: Renewal, batch: Any) -> None:
        request, slots = renewal.request, renewal.slots
        index = next((index for index, each in enumerate(batch.reqs) if each is request), None)
        if index is None or slots is None:
            # Between two batches; it is in place one step later.
            return
        state, scored = _decode_state(request), state_of(renewal.scoring)
        assert isinstance(scored, ScoringState)
        assert scored.selector is not None
        head = renewal.tokens - 1 - state.shift
        if not can_replace_head(request, head):
            # It would lose slots of the tree. The answer can go on without a renewal.
            log.error("presift: a renewal does not fit its request's KV: %d slots to replace", head)
            self._skip(renewal)
            return
        if not replace_head(self._scheduler, batch, index, head, slots):
            self._skip(renewal)
            return
        if state.is_full:
            _become_compressed(request, state)
        _follow_coverage(state, renewal.coverage)
        generated = renewal.tokens - len(state.prompt) - state.suffix_tokens
        state.mentions.restart(generated)
        state.next_renewal = generated + _interval(state) if state.plan.policy.renew_every else None
        del self._open[request.rid]
        state.record_renewal(coverage=renewal.coverage, score_ms=scored.selector.ms, publish_ms=renewal.publish_ms)
        scored.release()

    def _skip(self, renewal: Renewal) -> None:
        """Give a renewal up. The next one is due as if it had been done."""
        state = _decode_state(renewal.request)
        state.next_renewal = len(renewal.request.output_ids) + _interval(state)
        # A full pool is not asked sooner, whatever the answer mentions.
        state.mentions.restart(state.next_renewal)
        if state.report is not None:
            state.report.renewals_skipped += 1
        self._close(renewal)

    def _close(self, renewal: Renewal) -> None:
        """End a renewal that is not put in place."""
        del self._open[renewal.request.rid]
        scored = state_of(renewal.scoring)
        assert isinstance(scored, ScoringState)
        if renewal.slots is not None:
            self._scheduler.token_to_kv_pool_allocator.free(renewal.slots)
        elif not scored.is_finished:
            self._needless.append(renewal.scoring)
        scored.release()

    def _withdraw_needless(self) -> None:
        needless, self._needless = self._needless, []
        withdraw(self._scheduler, needless)


def all_tokens(request: Any, state: DecodeState) -> array[int]:
    """The tokens of a caller: prompt, suffix and what was generated."""
    suffix = request.origin_input_ids[len(request.origin_input_ids) - state.suffix_tokens :]
    tokens: array[int] = state.prompt + suffix + request.output_ids
    return tokens


def selection(state: DecodeState, tokens: array[int]) -> DecodeState:
    """What a renewal selects from `tokens`: as much of the prompt as before, and all that follows it."""
    prompt_tokens, policy = len(state.prompt), state.plan.policy
    kept = state.kept + len(tokens) - prompt_tokens
    policy = replace(
        policy,
        capacity=kept,
        window=policy.renew_window,
        lookahead_tokens=0,
        selection=KvSelection.TARGET_LOOKAHEAD,
        renew_every=0,
        first_full_tokens=0,
    )
    protected = (*state.plan.protected, Span(prompt_tokens - 1, len(tokens) - 1))
    return DecodeState(KvPlan(policy, protected), tokens, kept, "", state.extra_key, 0)


def _become_compressed(request: Any, state: DecodeState) -> None:
    """From now on the request is one that decodes on the entry, as if it had begun so."""
    suffix = request.origin_input_ids[len(state.prompt) :]
    state.is_full = False
    request.origin_input_ids = state.pseudo_key + state.prompt[-1:] + suffix
    request.extra_key = state.entry
    # SGLang would only append to it.
    request.full_untruncated_fill_ids = array("q")


def _is_waiting(renewal: Renewal, queued: QueuedIds) -> bool:
    """Whether the scoring request of a renewal waits in SGLang's queue."""
    return renewal.slots is None and not renewal.scoring.kv.holds_kv and renewal.scoring.rid in queued


def _renews(request: Any) -> bool:
    state = state_of(request)
    return isinstance(state, DecodeState) and state.next_renewal is not None


def _follow_coverage(state: DecodeState, coverage: float | None) -> None:
    """Renew twice as often after coverage has fallen, until it rises again."""
    before, state.renewed_coverage = state.renewed_coverage, coverage
    if before is not None and coverage is not None:
        change = coverage - before
        state.is_hurried = change < -_COVERAGE_FALL or (state.is_hurried and change <= 0)


def _interval(state: DecodeState) -> int:
    """How many tokens lie between two renewals."""
    every = state.plan.policy.renew_every or state.plan.policy.renew_window
    return min(every, max(every // 2, LEAST_RENEWAL_TOKENS)) if state.is_hurried else every


def _prompt_tokens(renewal: Renewal) -> int:
    return len(_decode_state(renewal.request).prompt)


def _decode_state(request: Any) -> DecodeState:
    state = state_of(request)
    assert isinstance(state, DecodeState)
    return state
