"""Builds compressed entries: a scoring request reads the prompt, KV is selected and copied, the caller decodes.

The caller's request (DecodeState) waits outside SGLang's queue while a request of the plugin's own (ScoringState) reads
the prompt and selects KV. Then the caller returns to the head of the queue. SGLang batches, chunks, aborts and retracts
both like ordinary requests.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from presift.target.sglang_plugin.custom_params import mask_to_values
from presift.target.sglang_plugin.entry_pins import PINNED_SHARE, EntryPins, SelectedCopy, copy_selected, insert_entry
from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.renewals import Renewals
from presift.target.sglang_plugin.scoring_request import scoring_request
from presift.target.sglang_plugin.sglang_names import cached_prefix
from presift.target.sglang_plugin.states import DecodeState, ScoringState, state_of
from presift.target.sglang_plugin.verified_lookahead import accept
from presift.target.sglang_plugin.waiting_queue import QueuedIds, withdraw

# How often building an entry may fail for lack of room, or the entry be evicted before use, before the request fails.
MAX_ATTEMPTS = 8
# How many entries are remembered: requests that reuse them report the coverage, and begin with the accepted tokens.
_REMEMBERED = 4096

log = logging.getLogger(__name__)


# An entry's name, `keep_full_prefix` and `report_kept`: requests share a build only if all are equal.
BuildKey = tuple[str, bool, bool]


@dataclass(slots=True, eq=False)
class EntryBuild:
    """One entry being built: the scoring request and the callers that wait for it."""

    key: BuildKey
    scoring: Any
    waiting: list[Any] = field(default_factory=list)
    # Whether SGLang has admitted `scoring`.
    is_admitted: bool = False


@dataclass(frozen=True, slots=True)
class BuiltEntry:
    """What is known of an entry that was built: its coverage, and the beginning of a greedy answer."""

    coverage: float | None
    accepted: tuple[int, ...] = ()


class EntryBuilder:
    """The plugin's state in one scheduler: `builds` under way and `pins` by request id. Both are empty when idle."""

    def __init__(self, scheduler: Any, ranks: Ranks = ALONE) -> None:
        self._scheduler = scheduler
        self._ranks = ranks
        self.builds: dict[BuildKey, EntryBuild] = {}
        self.pins = EntryPins(scheduler.tree_cache, int(scheduler.max_total_num_tokens * PINNED_SHARE))
        self.renewals = Renewals(scheduler, ranks)
        self._missing: list[Any] = []
        # The tokens of the entries whose scoring requests are admitted.
        self._building_tokens = 0
        # The build that waits for room.
        self._delayed: BuildKey | None = None
        self._built: OrderedDict[str, BuiltEntry] = OrderedDict()

    def counts(self) -> dict[str, int]:
        """Counts of the plugin's state (all 0 when idle), of the pool's KV slots, and the page size.

        They are part of SGLang's internal state, so the names are a contract.
        """
        tree = self._scheduler.tree_cache
        return {
            "runs": len(self.builds),
            "waiting": sum(len(build.waiting) for build in self.builds.values()),
            "missing": len(self._missing),
            "renewing": len(self.renewals),
            "leases": len(self.pins),
            "leased_tokens": self.pins.tokens,
            "free_slots": self._scheduler.token_to_kv_pool_allocator.available_size(),
            "evictable_slots": tree.evictable_size(),
            "locked_slots": tree.protected_size(),
            "page_tokens": self._scheduler.page_size,
            "pool_tokens": self._scheduler.max_total_num_tokens,
        }

    def add_missing(self, request: Any) -> None:
        """Note a request that cannot be admitted because its entry is not in the tree."""
        self._missing.append(request)

    def has_room_for(self, state: ScoringState) -> bool:
        """Whether the entries that are built or wait for their callers leave room for another one under the pins' cap.

        Otherwise it waits until the callers are admitted: beyond the cap, their entries may be evicted before. SGLang
        may sort its queue so that builds come before callers. While one build waits, no later one takes its room.
        """
        key = _key(state.caller)
        build = self.builds.get(key)
        if build is not None and build.is_admitted:  # SGLang has retracted it; its tokens are counted
            return True
        if self._delayed != key and self._delayed in self.builds:
            return False
        tokens = self.pins.tokens + self._building_tokens
        has_room = not tokens or tokens + state.caller.kept <= self.pins.max_tokens
        self._delayed = None if has_room else key
        return has_room

    def on_scoring_admitted(self, state: ScoringState) -> None:
        """Count the entry of an admitted scoring request, until its build ends."""
        build = self.builds.get(_key(state.caller))
        if build is not None and not build.is_admitted:
            build.is_admitted = True
            self._building_tokens += state.caller.kept

    def begin_answer(self, request: Any, state: DecodeState) -> bool:
        """Begin the answer of a request that has found its entry with the lookahead's accepted tokens, if they are its
        own and it has generated none. True if it did. If that fails, the request is aborted in `start_missing`.
        """
        entry = self._built.get(state.entry)
        if entry is None or state.is_full or state.suffix_tokens or request.output_ids:
            return False
        try:
            accepted = accept(request, entry.accepted)
            if not accepted:
                return False
            self._scheduler.batch_result_processor._maybe_update_reasoning_tokens(request, list(request.output_ids))
        except Exception as error:
            # Otherwise SGLang may take it for an answer that has ended.
            del request.output_ids[:]
            request.finished_reason = request.finished_len = None
            abort(request, 500, self._failure("beginning an answer", error))
            self.add_missing(request)
            return False
        if state.report is None:
            state.record_reuse(cached_prefix(request), entry.coverage)
        assert state.report is not None
        state.report.accepted_tokens = accepted
        if state.next_renewal is not None:
            # Not before a token was decoded: until then SGLang may still insert the row into its tree.
            state.next_renewal = max(state.next_renewal, accepted + 1)
            # The selection has read them as its lookahead.
            state.mentions.restart(accepted)
        return True

    def on_admitted(self, request: Any, state: DecodeState) -> None:
        """Release the pin of an admitted request: SGLang locks the entry from now on."""
        self.pins.release(request.rid)
        try:
            self._report_admitted(request, state)
        except Exception as error:
            abort_admitted(request, 500, self._failure("reporting on an answer", error))

    def _report_admitted(self, request: Any, state: DecodeState) -> None:
        if state.report is None:
            cached = cached_prefix(request)
            if state.is_full:
                state.record_full(cached)
            else:
                entry = self._built.get(state.entry)
                state.record_reuse(cached, None if entry is None else entry.coverage)
        elif state.plan.policy.renews and not state.is_full and request.retraction_count:
            # It continues on the first entry, so it needs the renewal that it lost.
            state.next_renewal = len(request.output_ids) + 1
            state.mentions.restart(len(request.output_ids))
        if state.report is not None and state.report.accepted_tokens and not request.send_token_offset:
            # Before the first step, which generates the token behind them.
            self._scheduler.output_streamer.stream_output([request], False)

    def start_missing(self) -> bool:
        """Start builds for the missing entries. True if the queue has a new or changed request."""
        missing, self._missing = self._missing, []
        if not missing:
            return False
        queue = self._scheduler.waiting_queue
        queued = {id(each) for each in queue}
        # What takes the place of a request in the queue; None: nothing.
        places: dict[int, Any] = {}
        for request in missing:
            state = state_of(request)
            if isinstance(state, DecodeState) and id(request) in queued and id(request) not in places:
                places[id(request)] = self._start(request, state)
        # In one pass: a burst of new prompts may fill the queue.
        queue[:] = [each for each in (places.get(id(each), each) for each in queue) if each is not None]
        return any(place is not None for place in places.values())

    def clean_up(self, queued: QueuedIds) -> None:
        """Release pins that expired or whose request left the queue. Requeue the callers of scoring requests that are
        gone (aborted or timed out).
        """
        if not self.builds and not len(self.pins):
            return
        self.pins.count_step()
        self.pins.release_except(queued)
        for build in list(self.builds.values()):
            if not (build.scoring.kv.holds_kv or build.scoring.rid in queued):
                self._requeue(build)

    def release_pins(self) -> bool:
        """Release all pins; True if there were any. Entries that are evicted then are built again."""
        return self.pins.release_except(())

    def finish_scoring(self, request: Any, state: ScoringState) -> None:
        """Publish the entry of a scoring request that has just read its prompt, and pin it for the callers."""
        if state.is_renewal:
            self.renewals.finish_scoring(request, state)
            return
        state.is_finished = True
        build = self.builds.get(_key(state.caller))
        if build is None or build.scoring is not request:
            state.release()
            return
        started = time.perf_counter()
        copied = copy_selected(self._scheduler, request, state, self._ranks)
        if copied.failure is not None:
            self._fail(build, 500, f"presift: building a compressed entry failed: {copied.failure}")
        elif copied.slots is None:
            log.warning("presift: no room for an entry of %d KV pairs; trying again", state.caller.kept)
            self._requeue(build)
        else:
            node = insert_entry(self._scheduler.tree_cache, request, state.caller, copied.slots)
            self._complete(build, node, copied, (time.perf_counter() - started) * 1e3)

    def requeue_waiting(self, prefix: str, every: bool = False) -> None:
        """Return waiting callers whose id starts with `prefix` to SGLang's queue, where it looks for aborted ones."""
        needless: list[Any] = []
        for build in list(self.builds.values()):
            leaving: list[Any] = []
            staying: list[Any] = []
            for request in build.waiting:
                (leaving if every or request.rid.startswith(prefix) else staying).append(request)
            build.waiting = staying
            self._scheduler.waiting_queue.extend(leaving)
            if leaving and not build.waiting:
                self._close(build)
                needless.append(build.scoring)
        withdraw(self._scheduler, needless)

    def on_tree_reset(self) -> None:
        """Forget all entries, because the tree was emptied."""
        self.pins.clear()
        self._built.clear()

    def _start(self, request: Any, state: DecodeState) -> Any:
        """What takes the place of a request in the queue whose entry is missing; None: it waits for a build."""
        if request.to_finish is not None:
            return request
        state.attempts += 1
        if state.attempts > MAX_ATTEMPTS:
            abort(request, 503, f"presift: no room for a compressed entry after {MAX_ATTEMPTS} attempts; retry later")
            return request
        key = _key(state)
        build = self.builds.get(key)
        if build is not None:
            build.waiting.append(request)
            self._raise_priority(build.scoring, request.priority)
            return None
        try:
            scoring = scoring_request(self._scheduler, request, state)
        except Exception as error:
            abort(request, 500, self._failure("starting to build a compressed entry", error))
            return request
        self.builds[key] = EntryBuild(key, scoring, [request])
        return scoring

    def _failure(self, doing: str, error: Exception) -> str:
        """The message for a request that fails by `error`, which is logged. It is raised again on several ranks: the
        others may not have it, and would go on with the request.
        """
        if self._ranks.are_several:
            raise error
        log.exception("presift: %s failed", doing)
        return f"presift: {doing} failed: {type(error).__name__}"

    def _raise_priority(self, scoring: Any, priority: int | None) -> None:
        """Give the scoring request the priority of its most urgent caller."""
        if priority is not None and scoring.priority is not None:
            more_urgent = min if self._scheduler.schedule_low_priority_values_first else max
            scoring.priority = more_urgent(scoring.priority, priority)

    def _complete(self, build: EntryBuild, node: Any, copied: SelectedCopy, publish_ms: float) -> None:
        state = state_of(build.scoring)
        assert isinstance(state, ScoringState)
        cached = min(build.scoring.cached_tokens, len(state.caller.prompt))
        coverage, score_ms = copied.coverage, 0.0 if state.selector is None else state.selector.ms
        self._remember(state.caller.entry, BuiltEntry(coverage, copied.accepted))
        kept = None if copied.kv_mask is None else mask_to_values(copied.kv_mask)
        for request in build.waiting:
            each = state_of(request)
            assert isinstance(each, DecodeState)
            each.record_build(cached, score_ms=score_ms, publish_ms=publish_ms, coverage=coverage, kv_mask=kept)
            self.pins.pin(request.rid, node, each.kept)
        self._requeue(build)

    def _remember(self, name: str, entry: BuiltEntry) -> None:
        self._built[name] = entry
        self._built.move_to_end(name)
        while len(self._built) > _REMEMBERED:
            self._built.popitem(last=False)

    def _fail(self, build: EntryBuild, status: int, message: str) -> None:
        for request in build.waiting:
            abort(request, status, message)
        self._requeue(build)

    def _requeue(self, build: EntryBuild) -> None:
        """End the build: its callers return to the head of the queue."""
        self._close(build)
        self._scheduler.waiting_queue[:0] = build.waiting

    def _close(self, build: EntryBuild) -> None:
        del self.builds[build.key]
        state = state_of(build.scoring)
        assert isinstance(state, ScoringState)
        self._building_tokens -= state.caller.kept if build.is_admitted else 0
        state.release()


def _key(state: DecodeState) -> BuildKey:
    return state.entry, state.plan.keep_full_prefix, state.plan.report_kept


def abort(request: Any, status: int, message: str) -> None:
    """End a waiting request with an error. SGLang still runs one token for it, whose KV must not be cached."""
    request.set_finish_with_abort(message, status_code=status, err_type="presift")
    request.skip_radix_cache_insert = True


def abort_admitted(request: Any, status: int, message: str) -> None:
    """End an admitted request with an error after its next token. What it reads is settled, so it does not change."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT  # noqa: PLC0415 - in the scheduler alone

    request.to_finish = FINISH_ABORT(message, status, "presift")
    request.skip_radix_cache_insert = True
