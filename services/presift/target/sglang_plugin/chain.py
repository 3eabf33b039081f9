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

from presift.core.kv_plan import must_keep
from presift.target.sglang_plugin.entries import LEASED_SHARE, Leases, publish
from presift.target.sglang_plugin.parameters import KEY, mask_to_values
from presift.target.sglang_plugin.scores import Scores
from presift.target.sglang_plugin.states import Compressed, Scoring, state_of

# How often an entry may find no room, or be lost before it is used, until the caller is told to come again.
MAX_ATTEMPTS = 8
# Coverage of entries, so that a reply that reuses one can tell it.
_REMEMBERED = 4096

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Run:
    """The making of one entry: the request that is scored, and the callers' requests that wait for it."""

    scoring: Any
    waiting: list[Any] = field(default_factory=list)


class Chain:
    """The side state of the plugin in one scheduler: `runs` by entry, `leases` by request id. Empty when idle."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.runs: dict[str, Run] = {}
        self.leases = Leases(scheduler.tree_cache, int(scheduler.max_total_num_tokens * LEASED_SHARE))
        self._missing: list[Any] = []
        self._coverage: OrderedDict[str, float | None] = OrderedDict()

    def counts(self) -> dict[str, int]:
        """Side state (all 0 when idle), the pool's KV slots (free, evictable, locked), and the page size."""
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
        }

    def entry_is_missing(self, request: Any) -> None:
        """Remember a request that cannot be admitted yet: its entry is not in the tree."""
        self._missing.append(request)

    def admitted(self, request: Any, state: Compressed) -> None:
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
        """Release expired leases; put callers whose scoring is gone (aborted, timed out) back into the queue."""
        self.leases.release_expired()
        for entry, run in list(self.runs.items()):
            scoring = run.scoring
            if not (scoring.kv.holds_kv or any(each is scoring for each in self._scheduler.waiting_queue)):
                self._finish(entry)

    def settle(self, request: Any, state: Scoring) -> None:
        """The prompt of a scored request was just read: make its entry, lease it to those that wait."""
        state.is_settled = True
        entry, run = state.of.entry, self.runs.get(state.of.entry)
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
            self._try_again(run)
            return
        self._made(entry, run, node, (time.perf_counter() - started) * 1e3)

    def unpark(self, prefix: str, every: bool = False) -> None:
        """Hand requests that wait aside back to the queue, where SGLang will look for those that it aborts."""
        for entry, run in list(self.runs.items()):
            leaving = [request for request in run.waiting if every or request.rid.startswith(prefix)]
            run.waiting = [request for request in run.waiting if request not in leaving]
            self._scheduler.waiting_queue.extend(leaving)
            if leaving and not run.waiting:
                self._abandon(entry, run)

    def forget(self) -> None:
        """The tree is emptied."""
        self.leases.forget()
        self._coverage.clear()

    def _start(self, request: Any) -> bool:
        queue, state = self._scheduler.waiting_queue, state_of(request)
        place = next((place for place, each in enumerate(queue) if each is request), None)
        if place is None or not isinstance(state, Compressed):
            return False
        state.attempts += 1
        if state.attempts > MAX_ATTEMPTS:
            abort(request, 503, f"presift: no room for a compressed entry after {MAX_ATTEMPTS} attempts")
            return True
        run = self.runs.get(state.entry)
        if run is not None:
            run.waiting.append(request)
            del queue[place]
            return False
        scoring = _scoring_request(self._scheduler, request, state)
        self.runs[state.entry] = Run(scoring, [request])
        queue[place] = scoring
        return True

    def _made(self, entry: str, run: Run, node: Any, publish_ms: float) -> None:
        state = state_of(run.scoring)
        assert isinstance(state, Scoring)
        cached = min(run.scoring.cached_tokens, len(state.of.prompt))
        coverage, score_ms, mask = None, 0.0, state.of.plan.kv_mask
        if state.scores is not None:
            coverage, score_ms, mask = state.scores.coverage, state.scores.ms, state.scores.mask
        self._remember(entry, coverage)
        for request in run.waiting:
            waiting = state_of(request)
            assert isinstance(waiting, Compressed)
            kept = mask_to_values(mask) if mask is not None and waiting.plan.report_kept else None
            waiting.made(cached, score_ms=score_ms, publish_ms=publish_ms, coverage=coverage, kv_mask=kept)
            self.leases.take(request.rid, node, waiting.kept)
        self._finish(entry)

    def _remember(self, entry: str, coverage: float | None) -> None:
        self._coverage[entry] = coverage
        self._coverage.move_to_end(entry)
        while len(self._coverage) > _REMEMBERED:
            self._coverage.popitem(last=False)

    def _try_again(self, run: Run) -> None:
        log.warning("presift: no room for an entry of %d KV pairs yet", state_of(run.waiting[0]).kept)  # type: ignore[union-attr]
        self._finish(next(entry for entry, each in self.runs.items() if each is run))

    def _fail(self, run: Run, status: int, message: str) -> None:
        for request in run.waiting:
            abort(request, status, message)
        self._finish(next(entry for entry, each in self.runs.items() if each is run))

    def _finish(self, entry: str) -> None:
        run = self.runs.pop(entry)
        self._scheduler.waiting_queue[:0] = run.waiting

    def _abandon(self, entry: str, run: Run) -> None:
        """Nobody waits for this entry any more."""
        del self.runs[entry]
        scheduler, scoring = self._scheduler, run.scoring
        if any(each is scoring for each in scheduler.waiting_queue):
            scheduler.waiting_queue.remove(scoring)
        elif scheduler.chunked_req is scoring:
            scheduler._pending_chunked_abort_req = scoring
        # Its last chunk is under way otherwise: it ends by itself, and settles nothing.


def abort(request: Any, status: int, message: str) -> None:
    """End a waiting request with an error. SGLang still runs one token for it, whose KV must not be kept."""
    request.set_finish_with_abort(message, status_code=status, err_type="presift")
    request.skip_radix_cache_insert = True


def _scoring_request(scheduler: Any, request: Any, state: Compressed) -> Any:
    """The request that reads the prompt and the lookahead of `request`, in the caller's own, ordinary namespace."""
    from sglang.srt.managers.schedule_batch import Req  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: PLC0415

    # Greedy, and no token at all: SGLang's name for "prefill only".
    sampling = SamplingParams(max_new_tokens=0, temperature=0.0)
    sampling.normalize(None)
    sampling.custom_params = {KEY: Scoring(state, _scores(scheduler, state))}
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
    scoring.time_stats.set_wait_queue_entry_time()
    return scoring


def _scores(scheduler: Any, state: Compressed) -> Scores | None:
    plan, prompt_tokens = state.plan, len(state.prompt)
    if plan.kv_mask is not None:
        return None
    prefix = prompt_tokens - 1 - plan.policy.window
    return Scores(
        plan.policy,
        prompt_tokens,
        len(plan.lookahead_token_ids),
        state.kept,
        scheduler.model_config.num_hidden_layers,
        torch.from_numpy(must_keep(plan, prompt_tokens)[:prefix]),
    )
