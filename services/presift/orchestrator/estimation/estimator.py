"""Economy: what this orchestrator has seen of costs, so that the next request is routed on what it will really cost.

Learns from every answer: the stages' speeds, what the target's cache holds, which prompts are compressed already, and
what of our own is under way. It does not see other orchestrators' traffic, but through the timings.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from presift.core.plan import ModelInfo, Route
from presift.core.policies import Policy
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.estimation.block_hash import BlockHashes
from presift.orchestrator.estimation.location import location_of
from presift.orchestrator.estimation.observation import AnswerObservation, learn
from presift.orchestrator.estimation.pending_work import PendingWork
from presift.orchestrator.estimation.perf_model import PerfModel, StageCost, calibrate
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.estimation.target_load import TargetLoads
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.cost_model import QueuedWork, RunningAnswer, SystemState, TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Plan

KEPT_PROMPTS = 1024
# A replica that gave none of these is not there any more.
_LAST_ANSWERS = 32
# Of one prompt: a caller who varies the budget must not fill the memory.
_KEPT_POLICIES = 8


@dataclass(frozen=True, slots=True)
class _Known:
    """A compressed prompt that was made: the blocks of what is read of it; where KV is dropped, its entry's name."""

    blocks: tuple[int, ...]
    entry: Hashable


@dataclass(frozen=True, slots=True)
class _Seen:
    """What an outlook is made of beside the places: the prompt and what was compressed of it, what waits and is under
    way there, `own` requests."""

    chain: BlockHashes
    known: dict[Policy, _Known]
    load: QueuedWork
    own: int
    answers: tuple[RunningAnswer, ...]


class CostEstimator:
    """`learns` False keeps the speeds at their seeds. `reads_beside`: the target reads while the draft works. `drafts`:
    how many can work at once."""

    def __init__(
        self,
        prefixes: PrefixIndex | None = None,
        *,
        learns: bool = True,
        reads_beside: bool = False,
        loads: TargetLoads | None = None,
        drafts: Callable[[], int] = lambda: 1,
    ) -> None:
        self._prefixes = PrefixIndex() if prefixes is None else prefixes
        self._learns = learns
        self._reads_beside = reads_beside
        self._book = PerfModel()
        self._compressed: OrderedDict[int, dict[Policy, _Known]] = OrderedDict()
        self._answered_last: dict[str, deque[str]] = {}
        self._drafts = drafts
        self.drafting, self.reading = PendingWork(), PendingWork()
        self._readings: dict[str, PendingWork] = {}
        self.loads = TargetLoads() if loads is None else loads

    def outlook(
        self,
        ids: NDArray[np.uint32],
        target: ModelInfo,
        draft: ModelInfo | None,
        spent_ms: float = 0.0,
        *,
        salt: str = "",
    ) -> SystemState:
        """What the routes of this prompt are to be predicted from. Of several replicas behind one address nobody can
        tell which will answer: so that which holds the least of the prompt, or is the fullest. `spent_ms` since the
        request's arrival; `salt` says whose it is.
        """
        replicas = dict.fromkeys(self._answered_last.get(location_of(target), ("",)))
        chain = self._prefixes.chain(ids, salt)
        seen = self._seen(chain, self.reading, self.loads.answers, spent_ms)
        drafting = "" if draft is None else location_of(draft)
        return min((self._outlook(seen, (drafting, location_of(target, each))) for each in replicas), key=_least)

    def outlooks(
        self,
        ids: NDArray[np.uint32],
        target: ModelInfo,
        draft: ModelInfo | None,
        replicas: Iterable[str],
        spent_ms: float = 0.0,
        *,
        salt: str = "",
    ) -> dict[str, SystemState]:
        """The same at each of these replicas of the target, which can be addressed one by one."""
        chain, drafting = self._prefixes.chain(ids, salt), "" if draft is None else location_of(draft)
        idle, found = self._seen(chain, PendingWork(), (), spent_ms), {}  # most replicas are, and look alike
        for replica in replicas:
            queue = self._readings.get(replica) if replica else self.reading
            answers = self.loads.answers_at(replica)
            seen = idle
            if answers or queue is not None:
                seen = self._seen(chain, queue or PendingWork(), answers, spent_ms, idle.known)
            found[replica] = self._outlook(seen, (drafting, location_of(target, replica)))
        return found

    def reading_at(self, replica: str) -> PendingWork:
        """What is under way at a replica that was chosen; without a name, at the target."""
        if not replica:
            return self.reading
        if replica not in self._readings:  # who has left is forgotten
            self._readings = {name: queue for name, queue in self._readings.items() if len(queue)}
        return self._readings.setdefault(replica, PendingWork())

    def _seen(
        self,
        chain: BlockHashes,
        reading: PendingWork,
        answers: tuple[RunningAnswer, ...],
        spent_ms: float,
        known: dict[Policy, _Known] | None = None,
    ) -> _Seen:
        load = QueuedWork(self.drafting.wait_ms / max(1, self._drafts()), reading.wait_ms, spent_ms)
        known = self._compressed.get(chain.name, {}) if known is None else known
        return _Seen(chain, known, load, len(reading), answers)

    def _outlook(self, seen: _Seen, places: tuple[str, str]) -> SystemState:
        drafting, reading = places
        known = seen.known
        load, others_ms = seen.load, self.loads.others_ms(reading, seen.own)
        expected = self._prefixes.expected_of
        return SystemState(
            speeds=self._book.speeds(drafting, reading),
            load=replace(load, target_ms=load.target_ms + others_ms) if others_ms else load,
            cached_tokens=self._prefixes.expected(reading, seen.chain),
            compressed=tuple((policy, expected(reading, found.blocks)) for policy, found in known.items()),
            entries=frozenset(policy for policy, found in known.items() if expected(reading, (found.entry,))),
            reads_beside=self._reads_beside,
            free_kv_tokens=self.loads.free_kv_tokens(reading),
            answers=seen.answers,
        )

    def learnt(self) -> list[StageCost]:
        """The speeds that rest on observations."""
        return self._book.learnt()

    def calibrated(self, stage: str, place: str, timings: Iterable[tuple[TokenWork, float]]) -> None:
        """Learn from timings that were no answers to anybody."""
        if self._learns:
            calibrate(self._book, stage, place, timings)

    @contextmanager
    def compressing(
        self, ids: NDArray[np.uint32], choice: RouteChoice, salt: str = "", replica: str = ""
    ) -> Iterator[None]:
        """A prompt is being compressed, until the block ends: the draft works, and the target (its `replica`) where it
        reads beside it; once for all who ask for the same."""
        name, found = self._prefixes.chain(ids, salt).name, choice.forecast
        with ExitStack() as turns:
            if found is not None and found.draft_work_ms and choice.policy is not None:
                turns.enter_context(self.drafting.working(found.draft_work_ms, (name, choice.policy.canonical())))
            if found is not None and found.beside_work_ms:
                turns.enter_context(self.reading_at(replica).working(found.beside_work_ms, name))
            yield

    def drafted(self, ids: NDArray[np.uint32], plan: Plan) -> None:
        """This prompt was compressed, or found to be."""
        policy = plan.decision.policy
        if policy is None or plan.decision.cache is CacheOutcome.NOT_USED:
            return
        chain = self._prefixes.chain(ids, plan.salt)
        blocks = tuple(self._prefixes.chain(plan.read_ids, plan.salt)) if plan.decision.route is Route.SPEC_PC else ()
        known = self._compressed.setdefault(chain.name, {})
        known.pop(policy.canonical(), None)  # to the end, as the latest
        known[policy.canonical()] = _Known(blocks, self._entry(plan))
        if len(known) > _KEPT_POLICIES:
            del known[next(iter(known))]
        self._compressed.move_to_end(chain.name)
        while len(self._compressed) > KEPT_PROMPTS:
            self._compressed.popitem(last=False)

    def observe(self, answered: AnswerObservation) -> None:
        """Learn from an answer."""
        usage, target = answered.usage, answered.plan.decision.target
        self._answered_last.setdefault(location_of(target), deque(maxlen=_LAST_ANSWERS)).append(usage.replica)
        self.loads.heard(location_of(target, usage.replica), usage.load, usage.ttft_ms if answered.was_alone else None)
        if self._learns:
            self._learn(answered)
        self.observe_prefix(answered.plan, usage, answered.token_ids, answered.began)

    @property
    def now(self) -> int:
        """A mark in the order of what was read, for `began`."""
        return self._prefixes.now

    def observe_prefix(self, plan: Plan, usage: Usage, token_ids: Sequence[int], began: float) -> None:
        """Learn what the target's cache holds from an answer, `token_ids`, a caller's or not; `began`: `now` when it
        was asked for."""
        key, chain = location_of(plan.decision.target, usage.replica), self._prefixes.chain(plan.read_ids, plan.salt)
        was_read_here = plan.decision.prefill_ms == 0.0 and not usage.reused_entry and not plan.decision.continued
        if was_read_here:
            self._prefixes.learn(key, chain, usage.cached_tokens, began)
        if plan.kv_plan is None:
            # The last token of an answer was never read.
            ids = np.append(plan.read_ids, np.array(token_ids[:-1], dtype=np.uint32))
            chain = self._prefixes.chain(ids, plan.salt)
            self._prefixes.remember(key, chain, usage.cached_tokens if was_read_here else 0)
            return
        was_read = was_read_here or plan.decision.prefill_ms > 0.0 or plan.decision.continued
        if plan.kv_plan.keep_full_prefix and was_read:
            self._prefixes.remember(key, chain, usage.cached_tokens if was_read_here else 0)
        self._observe_entry(key, plan, usage, began)

    def _observe_entry(self, key: str, plan: Plan, usage: Usage, began: float) -> None:
        name = self._entry(plan)
        if name is None:
            return
        self._prefixes.learn_entry(key, name, was_found=usage.reused_entry, began=began)
        if usage.reused_entry or usage.publish_ms > 0.0:
            self._prefixes.remember_entry(key, name, 0 if usage.reused_entry else usage.kv_tokens)

    def _learn(self, answered: AnswerObservation) -> None:
        plan, replica = answered.plan, answered.usage.replica
        chain = self._prefixes.chain(plan.read_ids, plan.salt)
        held = self._prefixes.expected(location_of(plan.decision.target, replica), chain)
        learn(self._book, answered, held)

    def _entry(self, plan: Plan) -> Hashable:
        """A name for the compressed entry that the target makes or finds; None, which is never held, where it drops no
        KV. A later turn goes on with the entry of another prompt, which is not known here.
        """
        if plan.kv_plan is None or plan.decision.continued or plan.decision.policy is None:
            return None
        return self._prefixes.chain(plan.read_ids, plan.salt).name, plan.decision.policy.canonical()


def _least(outlook: SystemState) -> tuple[int, float]:
    return outlook.cached_tokens, inf if outlook.free_kv_tokens is None else outlook.free_kv_tokens
