"""Score, publish, generate: two of SGLang's requests chained under the caller's one.

The caller's request (a `Compressed`) waits aside while its entry is made; a request of the plugin's own (a `Scoring`)
reads the prompt, is scored, and leaves the entry. Then the caller's goes back to the head of the queue. Both are
ordinary to SGLang: batched, chunked, evicted for, aborted and retracted like any other.
"""

from __future__ import annotations

import logging
import time
import uuid
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch

from presift.core.kv_plan import must_keep_kv
from presift.core.masks import KvMask
from presift.target.sglang_plugin.custom_params import KEY, mask_to_values
from presift.target.sglang_plugin.entry_pins import LEASED_SHARE, EntryPins, publish
from presift.target.sglang_plugin.kv_selector import KvSelector
from presift.target.sglang_plugin.states import DecodeState, ScoringState, state_of

# How often an entry may find no room, or be lost before it is used, until the caller is told to come again.
MAX_ATTEMPTS = 8
# Coverage of entries, so that a reply that reuses one can tell it.
_REMEMBERED = 4096

log = logging.getLogger(__name__)


# An entry's name, and whether the full prefix stays: who shares a making must want the same.
RunKey = tuple[str, bool]


@dataclass(slots=True, eq=False)
class EntryBuild:
    """One entry being built, under `key` of EntryBuilder.runs: the scoring request and the callers waiting for it."""

    key: RunKey
    scoring: Any
    waiting: list[Any] = field(default_factory=list)


class EntryBuilder:
    """The side state of the plugin in one scheduler: `runs` by entry, `leases` by request id. Empty when idle."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.runs: dict[RunKey, EntryBuild] = {}
        self.leases = EntryPins(scheduler.tree_cache, int(scheduler.max_total_num_tokens * LEASED_SHARE))
        self._missing: list[Any] = []
        self._coverage: OrderedDict[str, float | None] = OrderedDict()

    def counts(self) -> dict[str, int]:
        """Side state (all 0 when idle), the pool's KV slots (free, evictable, locked, all), and its page size."""
        tree = self._scheduler.tree_cache
        return {
            "runs": len(self.runs),
            "waiting": sum(len(run.waiting) for run in self.runs.values()),
            "missing": len(self._missing),
            "leases": len(self.leases),
            "leased_tokens": self.leases.tokens,
            "free_slots": self._scheduler.token_to_kv_pool_allocator.available_size(),
            "evictable_slots": tree.evictable_size(),
            "locked_slots": tree.protected_size(),
            "page_tokens": self._scheduler.page_size,
            "pool_tokens": self._scheduler.max_total_num_tokens,
        }

    def entry_is_missing(self, request: Any) -> None:
        """Remember a request that cannot be admitted yet: its entry is not in the tree."""
        self._missing.append(request)

    def admitted(self, request: Any, state: DecodeState) -> None:
        """The request holds its entry itself from now on."""
        self.leases.release(request.rid)
        if state.report is None:
            cached = len(request.prefix_indices)
            state.found(cached, self._coverage.get(state.entry))

    def start_missing(self) -> bool:
        """Begin to make the entries that were missing; True if there is something new in the queue."""
        missing, self._missing = self._missing, []
        started = False
        for request in missing:
            started |= self._start(request)
        return started

    def tidy(self) -> None:
        """Release leases that expired or whose request left the queue by another door; put callers whose scoring is
        gone (aborted, timed out) back into the queue.
        """
        if not self.runs and not len(self.leases):
            return
        queued = {request.rid for request in self._scheduler.waiting_queue}
        self.leases.release_except(queued)
        for run in list(self.runs.values()):
            if not (run.scoring.kv.holds_kv or run.scoring.rid in queued):
                self._finish(run)

    def make_room(self) -> bool:
        """Give up all leases; True if there were any. Their requests have their entries made again, if evicted."""
        return self.leases.release_except(())

    def settle(self, request: Any, state: ScoringState) -> None:
        """The prompt of a scored request was just read: make its entry, lease it to those that wait."""
        state.is_settled = True
        run = self.runs.get(_key(state.of))
        if run is None or run.scoring is not request:
            return
        if state.scores is not None and not state.scores.is_complete:
            self._fail(run, 500, "presift: not every layer was scored (does the attention backend show its queries?)")
            return
        started = time.perf_counter()
        try:
            node = publish(self._scheduler, request, state)
        except Exception as error:
            # One caller's entry must not end the scheduler, and all others with it.
            log.exception("presift: an entry could not be made")
            self._fail(run, 500, f"presift: an entry could not be made: {type(error).__name__}")
            return
        if node is None:
            log.warning("presift: no room for an entry of %d KV pairs yet", state.of.kept)
            self._finish(run)
            return
        self._made(run, node, (time.perf_counter() - started) * 1e3)

    def unpark(self, prefix: str, every: bool = False) -> None:
        """Hand requests that wait aside back to the queue, where SGLang will look for those that it aborts."""
        for run in list(self.runs.values()):
            leaving = [request for request in run.waiting if every or request.rid.startswith(prefix)]
            run.waiting = [request for request in run.waiting if request not in leaving]
            self._scheduler.waiting_queue.extend(leaving)
            if leaving and not run.waiting:
                self._abandon(run)

    def forget(self) -> None:
        """The tree is emptied."""
        self.leases.forget()
        self._coverage.clear()

    def _start(self, request: Any) -> bool:
        queue, state = self._scheduler.waiting_queue, state_of(request)
        place = next((place for place, each in enumerate(queue) if each is request), None)
        if place is None or not isinstance(state, DecodeState):
            return False
        state.attempts += 1
        if state.attempts > MAX_ATTEMPTS:
            abort(request, 503, f"presift: no room for a compressed entry after {MAX_ATTEMPTS} attempts")
            return True
        key = _key(state)
        run = self.runs.get(key)
        if run is not None:
            run.waiting.append(request)
            del queue[place]
            self._raise_priority(run.scoring, request.priority)
            return False
        scoring = _scoring_request(self._scheduler, request, state)
        self.runs[key] = EntryBuild(key, scoring, [request])
        queue[place] = scoring
        return True

    def _raise_priority(self, scoring: Any, priority: int | None) -> None:
        """The most urgent of those that wait decides."""
        if priority is not None and scoring.priority is not None:
            more_urgent = min if self._scheduler.schedule_low_priority_values_first else max
            scoring.priority = more_urgent(scoring.priority, priority)

    def _made(self, run: EntryBuild, node: Any, publish_ms: float) -> None:
        state = state_of(run.scoring)
        assert isinstance(state, ScoringState)
        scores, cached = state.scores, min(run.scoring.cached_tokens, len(state.of.prompt))
        coverage, score_ms = (None, 0.0) if scores is None else (scores.coverage, scores.ms)
        self._remember(state.of.entry, coverage)
        waiting = [(request, state_of(request)) for request in run.waiting]
        # Copied from the device, so only where somebody asked.
        wanted = any(isinstance(each, DecodeState) and each.plan.report_kept for _, each in waiting)
        kept = mask_to_values(_kept_mask(state)) if wanted else None
        for request, each in waiting:
            assert isinstance(each, DecodeState)
            told = kept if each.plan.report_kept else None
            each.made(cached, score_ms=score_ms, publish_ms=publish_ms, coverage=coverage, kv_mask=told)
            self.leases.take(request.rid, node, each.kept)
        self._finish(run)

    def _remember(self, entry: str, coverage: float | None) -> None:
        self._coverage[entry] = coverage
        self._coverage.move_to_end(entry)
        while len(self._coverage) > _REMEMBERED:
            self._coverage.popitem(last=False)

    def _fail(self, run: EntryBuild, status: int, message: str) -> None:
        for request in run.waiting:
            abort(request, status, message)
        self._finish(run)

    def _finish(self, run: EntryBuild) -> None:
        """Nothing is being made any more: those that wait go back to the head of the queue."""
        del self.runs[run.key]
        self._scheduler.waiting_queue[:0] = run.waiting

    def _abandon(self, run: EntryBuild) -> None:
        """Nobody waits for this entry any more."""
        del self.runs[run.key]
        scheduler, scoring = self._scheduler, run.scoring
        if any(each is scoring for each in scheduler.waiting_queue):
            scheduler.waiting_queue.remove(scoring)
        elif scheduler.chunked_req is scoring:
            scheduler._pending_chunked_abort_req = scoring
        # Its last chunk is under way otherwise: it ends by itself, and settles nothing.


def _key(state: DecodeState) -> RunKey:
    return state.entry, state.plan.keep_full_prefix


def _kept_mask(state: ScoringState) -> KvMask:
    mask = state.of.plan.kv_mask if state.scores is None else state.scores.mask
    if mask is None:
        raise AssertionError("neither scores nor a mask")
    return mask


def abort(request: Any, status: int, message: str) -> None:
    """End a waiting request with an error. SGLang still runs one token for it, whose KV must not be kept."""
    request.set_finish_with_abort(message, status_code=status, err_type="presift")
    request.skip_radix_cache_insert = True


def _scoring_request(scheduler: Any, request: Any, state: DecodeState) -> Any:
    """The request that reads the prompt and the lookahead of `request`, in the caller's own, ordinary namespace."""
    from sglang.srt.managers.schedule_batch import Req  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: PLC0415

    # Greedy, and no token at all: SGLang's name for "prefill only".
    sampling = SamplingParams(max_new_tokens=0, temperature=0.0)
    sampling.normalize(None)
    sampling.custom_params = {KEY: ScoringState(state, _scores(scheduler, state))}
    scoring = Req(
        f"presift-{uuid.uuid4().hex}",
        "",
        state.prompt + array("q", state.plan.lookahead_token_ids),
        sampling,
        eos_token_ids=request.eos_token_ids,
        vocab_size=request.vocab_size,
        priority=request.priority,
        extra_key=state.extra_key,
        cache_salt=request.cache_salt,
        http_worker_ipc=request.http_worker_ipc,
    )
    scoring.tokenizer = scheduler.tokenizer
    scoring.logprob_start_len = -1
    scoring.skip_radix_cache_insert = not state.plan.keep_full_prefix
    # Not the time of now: whoever limits how long a request may wait means the caller's.
    scoring.time_stats.wait_queue_entry_time = request.time_stats.wait_queue_entry_time
    return scoring


def _scores(scheduler: Any, state: DecodeState) -> KvSelector | None:
    plan, prompt_tokens = state.plan, len(state.prompt)
    if plan.kv_mask is not None:
        return None
    prefix = prompt_tokens - 1 - plan.policy.window
    return KvSelector(
        plan.policy,
        prompt_tokens,
        len(plan.lookahead_token_ids),
        state.kept,
        scheduler.model_config.num_hidden_layers,
        torch.from_numpy(must_keep_kv(plan, prompt_tokens)[:prefix]),
    )
