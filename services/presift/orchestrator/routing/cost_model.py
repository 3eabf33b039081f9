"""The cost of a route: predicted from the work that it makes and the cost curves of its stages. Pure: no clock.

A stage costs milliseconds for each call, each token, and each pair of tokens that attend to one another. `perf_model`
learns the numbers. The seeds here are those of the demo pair on two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from presift.core.policies import Policy
from presift.core.policies.spec_kv import LEAST_RENEWAL_TOKENS


@dataclass(frozen=True, slots=True)
class TokenWork:
    """A model reads `new_tokens` after `past_tokens` that its cache holds, then generates `steps` tokens."""

    new_tokens: int
    past_tokens: int = 0
    steps: int = 0

    @property
    def features(self) -> tuple[float, float, float, float]:
        """Calls, tokens, millions of attended pairs, steps."""
        new = self.new_tokens
        return 1.0, float(new), new * (self.past_tokens + new / 2) / 1e6, float(self.steps)


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Milliseconds for each feature of `TokenWork`, none negative; fitted to so many `observations`, 0 for a seed."""

    call_ms: float
    token_ms: float
    megapair_ms: float
    step_ms: float = 0.0
    observations: int = 0

    @property
    def weights(self) -> tuple[float, float, float, float]:
        return self.call_ms, self.token_ms, self.megapair_ms, self.step_ms

    def ms(self, work: TokenWork) -> float:
        """Milliseconds for this work."""
        _, tokens, megapairs, steps = work.features
        return self.call_ms + self.token_ms * tokens + self.megapair_ms * megapairs + self.step_ms * steps

    def scaled(self, factor: float) -> CostCurve:
        """Every weight times `factor`, with the same observations."""
        call_ms, token_ms, megapair_ms, step_ms = (weight * factor for weight in self.weights)
        return CostCurve(call_ms, token_ms, megapair_ms, step_ms, self.observations)


DRAFT_SEED = CostCurve(call_ms=10.0, token_ms=1.2, megapair_ms=400.0, step_ms=25.0)
TARGET_SEED = CostCurve(call_ms=20.0, token_ms=3.5, megapair_ms=800.0)
SELECTION_SEED = CostCurve(call_ms=10.0, token_ms=0.0, megapair_ms=500.0)
DECODING_SEED = CostCurve(call_ms=50.0, token_ms=0.003, megapair_ms=0.0)
TYPICAL = TokenWork(1024)
# Per generated token.
MOST_EARLY_RENEWALS = 1 / LEAST_RENEWAL_TOKENS


def selection_guess(target: CostCurve) -> CostCurve:
    """The curve of a KV selection that was never observed: its seed, scaled as the target's prefill is to its seed."""
    return SELECTION_SEED.scaled(target.ms(TYPICAL) / TARGET_SEED.ms(TYPICAL))


@dataclass(frozen=True, slots=True)
class StageCosts:
    """The curves of all stages: the draft's scoring; the target's reading up to its first token; its selection of KV
    (the scoring rows after the tokens that they select from); one decode step (as a reading of the KV tokens held).

    `contention` applies while draft and target work at the same time: the share of the shorter work that is not hidden
    by the longer one, 0..1. `early_renewals` are those per generated token that come beside the interval's: after a
    rare token of the prompt, or after coverage fell.
    """

    draft: CostCurve = DRAFT_SEED
    target: CostCurve = TARGET_SEED
    selection: CostCurve = SELECTION_SEED
    decoding: CostCurve = DECODING_SEED
    contention: float = 0.0
    early_renewals: float = 0.0

    def renewal_ms(self, rows: TokenWork) -> float:
        """Milliseconds to read these tokens and to select KV by them."""
        return self.target.ms(rows) + self.selection.ms(rows)

    @property
    def is_observed(self) -> bool:
        """Whether draft and target were both observed."""
        return self.draft.observations > 0 and self.target.observations > 0


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """Milliseconds of work queued before this request at draft and target, and milliseconds spent on it already."""

    draft_ms: float = 0.0
    target_ms: float = 0.0
    spent_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """An answer that is being decoded: its expected remaining time, and the KV slots that it holds until then."""

    remaining_ms: float
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class RenewalWork:
    """The target selects KV while it generates, each time by the tokens of `rows` after the whole prefix: after `every`
    tokens, or once in an answer if that is 0."""

    rows: TokenWork
    every: int


@dataclass(frozen=True, slots=True)
class RouteWork:
    """The work that a route makes of one prompt; None for a stage that has no part in it.

    The target reads `prefill` while the draft works, and `target` afterwards. `read_tokens` of the prompt are read,
    `kv_tokens` are held while decoding.
    """

    target: TokenWork
    read_tokens: int
    kv_tokens: int
    draft: TokenWork | None = None
    prefill: TokenWork | None = None
    selection: TokenWork | None = None
    renewal: RenewalWork | None = None

    @property
    def slots(self) -> int:
        """KV slots that the target needs besides the answer's: for all tokens read, and for what is selected of
        them."""
        read_tokens = self.target.past_tokens + self.target.new_tokens
        return read_tokens if self.selection is None and self.renewal is None else read_tokens + self.kv_tokens


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted milliseconds and tokens. `ttft_ms` contains all the others except `step_ms`, that of a decode step with
    its share of the renewals.

    `least_ms` is `ttft_ms` without draft and selection as long as they were never observed. `draft_ms` and `target_ms`
    include waiting; `draft_work_ms`, `prefill_work_ms` (read while the draft works) and `target_work_ms` (done after
    it) do not: other requests wait for those.
    """

    ttft_ms: float
    least_ms: float
    draft_ms: float
    target_ms: float
    draft_work_ms: float
    prefill_work_ms: float
    target_work_ms: float
    step_ms: float
    read_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class SystemState:
    """One snapshot of everything outside the request that its cost depends on.

    `cached_tokens` of the whole prompt are expected in the target's cache. `compressed` lists the policies whose
    compressed prompt is cached, with how many of its tokens the target has cached too; `entries` are the policies whose
    compressed entry is expected in the target's cache. `prefills`: the target reads while the draft works.
    `free_kv_tokens` are slots that no running request holds, None if unknown; `answers` are this orchestrator's answers
    that hold the others. `draft_cached_tokens` of the prompt are expected to be kept by the draft.
    """

    costs: StageCosts = field(default_factory=StageCosts)
    queued: QueuedWork = field(default_factory=QueuedWork)
    cached_tokens: int = 0
    compressed: tuple[tuple[Policy, int], ...] = ()
    entries: frozenset[Policy] = frozenset()
    prefills: bool = False
    free_kv_tokens: int | None = None
    answers: tuple[RunningAnswer, ...] = ()
    draft_cached_tokens: int = 0

    def forecast(self, work: RouteWork, answer_tokens: int = 0) -> Forecast:
        """The predicted cost of this work, with `answer_tokens` to be generated after it."""
        costs, queued = self.costs, self.queued
        waiting_ms = queued.target_ms + self.kv_wait_ms(work.slots + answer_tokens)
        draft_work_ms = 0.0 if work.draft is None else costs.draft.ms(work.draft)
        draft_ms = 0.0 if work.draft is None else queued.draft_ms + draft_work_ms
        selection_ms = 0.0 if work.selection is None else costs.selection.ms(work.selection)
        reading_ms = costs.target.ms(work.target)
        after_ms = reading_ms + selection_ms
        prefill_work_ms = 0.0 if work.prefill is None else costs.target.ms(work.prefill)
        prefill_ms = 0.0 if work.prefill is None else waiting_ms + prefill_work_ms
        queued_ms = 0.0 if work.prefill is not None else waiting_ms
        first_ms = max(draft_ms, prefill_ms) + costs.contention * min(draft_ms, prefill_ms)
        least_ms = queued.spent_ms + queued_ms + (after_ms if costs.selection.observations else reading_ms)
        return Forecast(
            ttft_ms=queued.spent_ms + first_ms + queued_ms + after_ms,
            least_ms=least_ms + (first_ms if costs.draft.observations else prefill_ms),
            draft_ms=draft_ms,
            target_ms=prefill_ms + queued_ms + after_ms,
            draft_work_ms=draft_work_ms,
            prefill_work_ms=prefill_work_ms,
            target_work_ms=after_ms,
            step_ms=costs.decoding.ms(TokenWork(work.kv_tokens)) + self._renewal_step_ms(work.renewal, answer_tokens),
            read_tokens=work.read_tokens,
            kv_tokens=work.kv_tokens,
        )

    def _renewal_step_ms(self, renewal: RenewalWork | None, answer_tokens: int) -> float:
        """The share of the renewals in each decode step: the target reads the rows, then selects."""
        if renewal is None:
            return 0.0
        each_ms = self.costs.renewal_ms(renewal.rows)
        if not renewal.every:
            return each_ms / max(1, answer_tokens)
        planned = 1 / renewal.every
        return each_ms * min(planned + self.costs.early_renewals, max(planned, MOST_EARLY_RENEWALS))

    def kv_wait_ms(self, needed_tokens: int) -> float:
        """Milliseconds until running answers have freed the KV slots that are missing for `needed_tokens`.

        Answers end in the order of their remaining time. If all of this orchestrator's answers free too little, others
        hold the rest; nothing is known about those, so the wait is that for its own last answer.
        """
        if self.free_kv_tokens is None or needed_tokens <= self.free_kv_tokens:
            return 0.0
        missing, waited_ms = needed_tokens - self.free_kv_tokens, 0.0
        for answer in sorted(self.answers, key=lambda each: each.remaining_ms):
            if missing <= 0:
                break
            missing, waited_ms = missing - answer.kv_tokens, answer.remaining_ms
        return waited_ms
