"""Online cost estimates from observed requests.

Learns from every answer: the cost curves of the stages, the contents of the target's cache, and which prompts are
compressed already. It also tracks this orchestrator's pending work. It sees the traffic of other orchestrators only
through timings and through the load that targets report.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import inf

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from presift.core.plan import ModelInfo
from presift.core.policies import Policy
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.estimation.block_hash import BlockHashes
from presift.orchestrator.estimation.observation import SCORED, AnswerObservation, learn
from presift.orchestrator.estimation.pending_work import PendingWork, WorkItem
from presift.orchestrator.estimation.perf_model import LearnedCost, PerfModel, location_of
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.estimation.target_load import TargetLoads
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.cost_model import QueuedWork, RunningAnswer, SystemState, TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Decision, Plan

# Bytes of the compressed prompts that are known.
COMPRESSED_BYTES = 16 * 2**20
# Of one prompt under one policy, without its blocks: the policy, the objects and their places (measured, rounded up).
_COMPRESSED_PROMPT_BYTES = 2048
# A replica that gave none of the last answers is assumed to be gone.
_LAST_ANSWERS = 32
# Policies per prompt: a caller who varies the budget must not fill the memory.
_KEPT_POLICIES = 8


@dataclass(frozen=True, slots=True)
class _Compressed:
    """A compressed prompt that exists: the block hashes of its tokens, and the name of its KV entry, if it has one."""

    blocks: array[int]
    entry: int | None

    @property
    def nbytes(self) -> int:
        return _COMPRESSED_PROMPT_BYTES + len(self.blocks) * self.blocks.itemsize


class CostEstimator:
    """`learns` False keeps the cost curves at their seeds. `prefills`: the target reads while the draft works.
    `draft_width` returns how many prompts the drafts can score at once."""

    def __init__(
        self,
        prefix_index: PrefixIndex | None = None,
        *,
        learns: bool = True,
        prefills: bool = False,
        loads: TargetLoads | None = None,
        draft_width: Callable[[], int] = lambda: 1,
    ) -> None:
        self._prefixes = PrefixIndex() if prefix_index is None else prefix_index
        self._learns = learns
        self._prefills = prefills
        self._perf = PerfModel()
        self._compressed: LRUCache[int, dict[Policy, _Compressed]] = LRUCache(COMPRESSED_BYTES, _compressed_bytes)
        self._last_replicas: dict[str, deque[str]] = {}
        self._draft_width = draft_width
        self.drafting, self.reading = PendingWork(), PendingWork()
        self._reading_at: dict[str, PendingWork] = {}
        self.loads = TargetLoads() if loads is None else loads

    def state(
        self,
        ids: NDArray[np.uint32],
        target: ModelInfo,
        draft: ModelInfo | None,
        spent_ms: float = 0.0,
        *,
        salt: str = "",
        replica: str = "",
    ) -> SystemState:
        """The snapshot to predict the routes of this prompt from, at a replica of the target.

        Without a replica's name several may answer behind one address: the snapshot is that of the replica that holds
        least of the prompt, or is fullest. `spent_ms` counts from the request's arrival; `salt` is its tenant's.
        """
        hashes, drafting = self._prefixes.hashes_of(ids, salt), "" if draft is None else location_of(draft)
        queue = self._reading_at.get(replica, PendingWork()) if replica else self.reading
        answers = self.loads.answers(replica)
        locations = [(drafting, reading) for reading in self._locations(target, replica)]
        return min((self._state(hashes, each, queue, answers, spent_ms) for each in locations), key=_least_useful)

    def entries(
        self, ids: NDArray[np.uint32], target: ModelInfo, *, salt: str = "", replica: str = ""
    ) -> frozenset[Policy]:
        """`SystemState.entries` alone; without a replica's name, those that every replica holds."""
        hashes = self._prefixes.hashes_of(ids, salt)
        return frozenset.intersection(*(self._entries(hashes, each) for each in self._locations(target, replica)))

    def pending_at(self, replica: str) -> PendingWork:
        """The pending work of a replica; without a name, that of the target as a whole."""
        if not replica:
            return self.reading
        if replica not in self._reading_at:  # idle replicas are dropped, as they may be gone
            self._reading_at = {name: queue for name, queue in self._reading_at.items() if len(queue)}
        return self._reading_at.setdefault(replica, PendingWork())

    def _state(
        self,
        hashes: BlockHashes,
        locations: tuple[str, str],
        queue: PendingWork,
        answers: tuple[RunningAnswer, ...],
        spent_ms: float,
    ) -> SystemState:
        drafting, reading = locations
        known, expected = self._compressed.get(hashes.name, {}), self._prefixes.expected_of
        target_ms = queue.wait_ms + self.loads.other_wait_ms(reading, len(queue))
        return SystemState(
            costs=self._perf.costs(drafting, reading),
            queued=QueuedWork(self.drafting.wait_ms / max(1, self._draft_width()), target_ms, spent_ms),
            cached_tokens=self._prefixes.expected(reading, hashes),
            draft_cached_tokens=self._prefixes.expected(drafting, hashes),
            compressed=tuple((policy, expected(reading, found.blocks)) for policy, found in known.items()),
            entries=self._entries(hashes, reading),
            prefills=self._prefills,
            free_kv_tokens=self.loads.free_kv_tokens(reading),
            answers=answers,
        )

    def _entries(self, hashes: BlockHashes, reading: str) -> frozenset[Policy]:
        known = self._compressed.get(hashes.name, {})
        return frozenset(
            policy
            for policy, found in known.items()
            if found.entry is not None and self._prefixes.expected_of(reading, (found.entry,))
        )

    def _locations(self, target: ModelInfo, replica: str) -> list[str]:
        """The locations that may answer: that of the replica, or of all that gave one of the last answers."""
        names: Iterable[str] = (replica,) if replica else self._last_replicas.get(location_of(target), ("",))
        return [location_of(target, name) for name in dict.fromkeys(names)]

    def learned(self) -> list[LearnedCost]:
        """The stage costs that rest on observations."""
        return self._perf.learned()

    def calibrate(self, stage: str, location: str, timings: Iterable[tuple[TokenWork, float]]) -> None:
        """Learn from timings of made-up prompts: (work, milliseconds)."""
        for work, took_ms in timings if self._learns else ():
            self._perf.observe(stage, location, work, took_ms)

    @contextmanager
    def compressing(self, tokens: TokenizedPrompt, choice: RouteChoice, replica: str = "") -> Iterator[None]:
        """Count the draft's work for a prompt, and the prefill at the target's `replica`, until the block ends.

        Requests for the same compressed prompt count once.
        """
        name, forecast = self._prefixes.hashes_of(tokens.ids, tokens.salt).name, choice.forecast
        with ExitStack() as pending:
            if forecast is not None and forecast.draft_work_ms and choice.policy is not None:
                key = name, choice.policy.entry_policy
                pending.enter_context(self.drafting.working(forecast.draft_work_ms, key))
            if forecast is not None and forecast.prefill_work_ms:
                pending.enter_context(self.pending_at(replica).working(forecast.prefill_work_ms, name))
            yield

    @contextmanager
    def answering(self, plan: Plan, max_new_tokens: int) -> Iterator[WorkItem]:
        """Count an answer until the block ends: its KV slots, and the work before its first token until `done`."""
        forecast, replica = plan.decision.forecast, plan.replica.name
        step_ms = 0.0 if forecast is None else forecast.step_ms
        work_ms = 0.0 if forecast is None else forecast.target_work_ms
        with (
            self.loads.answering(step_ms * max_new_tokens, plan.decision.kv_tokens, replica),
            self.pending_at(replica).working(work_ms) as reading,
        ):
            yield reading

    def record_compressed(self, plan: Plan) -> None:
        """Record that the compressed prompt of this plan exists now."""
        policy = plan.decision.policy
        if policy is None or plan.decision.cache is CacheOutcome.NOT_USED:
            return
        hashes = self._prefixes.hashes_of(plan.tokens.ids, plan.tokens.salt)
        self._observe_draft(plan.decision, hashes)
        blocks = array("q")
        if policy.prompt_stage is not None and policy.kv_stage is None:
            blocks.extend(self._prefixes.hashes_of(plan.read_ids, plan.tokens.salt))
        known = self._compressed.pop(hashes.name, {})
        policy = policy.entry_policy
        known.pop(policy, None)  # to the end of the order, as the latest
        known[policy] = _Compressed(blocks, self._entry_name(plan))
        if len(known) > _KEPT_POLICIES:
            del known[next(iter(known))]
        with suppress(ValueError):  # larger than the memory
            self._compressed[hashes.name] = known

    def _observe_draft(self, decision: Decision, hashes: BlockHashes) -> None:
        """Learn what the draft keeps, if it read the prompt for this plan."""
        if decision.draft is not None and decision.cache in SCORED:
            drafting, cached_tokens = location_of(decision.draft), decision.draft_cached_tokens
            self._prefixes.record_cached(drafting, hashes, cached_tokens)
            self._prefixes.record_read(drafting, hashes, cached_tokens)

    def observe(self, answer: AnswerObservation) -> None:
        """Learn from an answer to a caller."""
        usage, target = answer.usage, answer.plan.decision.target
        self._last_replicas.setdefault(location_of(target), deque(maxlen=_LAST_ANSWERS)).append(usage.replica)
        reading_ms = usage.ttft_ms if answer.was_uncontended else None
        self.loads.record(location_of(target, usage.replica), usage.load, reading_ms)
        if self._learns:
            hashes = self._prefixes.hashes_of(answer.plan.read_ids, answer.plan.tokens.salt)
            learn(self._perf, answer, self._prefixes.expected(location_of(target, usage.replica), hashes))
        self.observe_prefix(answer.plan, usage, answer.token_ids, answer.began)

    @property
    def now(self) -> int:
        """A mark in the order of what targets read, for `began`."""
        return self._prefixes.now

    def observe_prefix(self, plan: Plan, usage: Usage, token_ids: Sequence[int], began: float) -> None:
        """Learn the contents of the target's cache from an answer, `token_ids`, to a caller or to a shadow request.

        `began` is `now` as it was when the answer was requested.
        """
        location = location_of(plan.decision.target, usage.replica)
        hashes, decision = self._prefixes.hashes_of(plan.read_ids, plan.tokens.salt), plan.decision
        was_read_here = decision.prefill_ms == 0.0 and not usage.reused_entry and not decision.continued
        cached_tokens = usage.cached_tokens if was_read_here else 0
        if was_read_here:
            self._prefixes.record_cached(location, hashes, usage.cached_tokens, began)
        if plan.kv_plan is None:
            # The last token of an answer is never read.
            self._prefixes.record_read(location, hashes.followed_by(token_ids[:-1]), cached_tokens)
            return
        was_read = was_read_here or decision.prefill_ms > 0.0 or decision.continued
        if plan.kv_plan.keep_full_prefix and was_read:
            self._prefixes.record_read(location, hashes, cached_tokens)
        self._observe_entry(location, plan, usage, began)

    def _observe_entry(self, location: str, plan: Plan, usage: Usage, began: float) -> None:
        name = self._entry_name(plan)
        if name is None:
            return
        self._prefixes.record_entry_lookup(location, name, was_found=usage.reused_entry, began=began)
        if usage.reused_entry or usage.publish_ms > 0.0:
            self._prefixes.record_entry_use(location, name, 0 if usage.reused_entry else usage.kv_tokens)

    def _entry_name(self, plan: Plan) -> int | None:
        """The name of the compressed entry that the target makes or finds; None, which is never cached, without one.

        A later turn continues the entry of an earlier prompt, which is not known here. An answer that begins on the
        full KV makes none.
        """
        if plan.kv_plan is None or plan.decision.continued or plan.decision.policy is None:
            return None
        if plan.kv_plan.policy.first_full_tokens:
            return None
        return hash((self._prefixes.hashes_of(plan.read_ids, plan.tokens.salt).name, plan.decision.policy.entry_policy))


def _compressed_bytes(known: dict[Policy, _Compressed]) -> int:
    return sum(each.nbytes for each in known.values())


def _least_useful(state: SystemState) -> tuple[int, float]:
    return state.cached_tokens, inf if state.free_kv_tokens is None else state.free_kv_tokens
