"""Costs: what a route is predicted to take, from the work it makes and the speeds of its stages. Pure: no clock.

A stage costs milliseconds for each call, each token, each pair of tokens that attend to one another. `speeds` learns
the numbers; those that stand here, where learning begins, are the demo pair's on two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class TokenWork:
    """A model reads `new_tokens` behind `past_tokens` that its cache holds, then generates `steps` tokens."""

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
    """Milliseconds for each feature of `TokenWork`; none negative. `observations`: what they rest on, 0 for a seed."""

    call_ms: float
    token_ms: float
    megapair_ms: float
    step_ms: float = 0.0
    observations: int = 0

    @property
    def weights(self) -> tuple[float, float, float, float]:
        return self.call_ms, self.token_ms, self.megapair_ms, self.step_ms

    def ms(self, reading: TokenWork) -> float:
        """Milliseconds for this reading."""
        _, tokens, megapairs, steps = reading.features
        return self.call_ms + self.token_ms * tokens + self.megapair_ms * megapairs + self.step_ms * steps

    def slower(self, factor: float) -> CostCurve:
        """Every weight times `factor`; it rests on the same observations."""
        call_ms, token_ms, megapair_ms, step_ms = (weight * factor for weight in self.weights)
        return CostCurve(call_ms, token_ms, megapair_ms, step_ms, self.observations)


DRAFT_SEED = CostCurve(call_ms=10.0, token_ms=1.2, megapair_ms=400.0, step_ms=25.0)
TARGET_SEED = CostCurve(call_ms=20.0, token_ms=3.5, megapair_ms=800.0)
SCORING_SEED = CostCurve(call_ms=10.0, token_ms=0.0, megapair_ms=500.0)
DECODING_SEED = CostCurve(call_ms=50.0, token_ms=0.003, megapair_ms=0.0)
TYPICAL = TokenWork(1024)


def scoring_guess(target: CostCurve) -> CostCurve:
    """Scoring that was never observed: as much faster than its seed as this target reads than its own."""
    return SCORING_SEED.slower(target.ms(TYPICAL) / TARGET_SEED.ms(TYPICAL))


@dataclass(frozen=True, slots=True)
class StageCosts:
    """The stages' curves: the draft's scoring, the target's reading up to its first token, its choosing of KV (a
    reading of the rows that choose behind what they choose from), a decode step (a reading of the KV tokens held).

    `contention`: when draft and target work side by side, the share of the shorter work that is not hidden, 0..1.
    """

    draft: CostCurve = DRAFT_SEED
    target: CostCurve = TARGET_SEED
    scoring: CostCurve = SCORING_SEED
    decoding: CostCurve = DECODING_SEED
    contention: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether draft and target were both observed."""
        return self.draft.observations > 0 and self.target.observations > 0


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """Milliseconds of work that stand before this request, and what has been spent on it already."""

    draft_ms: float = 0.0
    target_ms: float = 0.0
    spent_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """An answer under way: how long it is expected to go on, and the KV slots that it holds until then."""

    remaining_ms: float
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class RouteWork:
    """What a route makes of one prompt. None where a stage has no part.

    `beside` is what the target reads while the draft works, `target` what it reads after. `read_tokens` of the prompt
    are read, `kv_tokens` held while decoding.
    """

    target: TokenWork
    read_tokens: int
    kv_tokens: int
    draft: TokenWork | None = None
    beside: TokenWork | None = None
    scoring: TokenWork | None = None

    @property
    def slots(self) -> int:
        """KV slots that the target needs for it, the answer aside: for all that is read, and the entry beside it."""
        read_tokens = self.target.past_tokens + self.target.new_tokens
        return read_tokens if self.scoring is None else read_tokens + self.kv_tokens


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted milliseconds and tokens. `ttft_ms` holds all of the others but `step_ms`, that of a decode step.

    `least_ms` is `ttft_ms` with draft and scoring left out where they were never observed. `draft_ms` and `target_ms`
    hold the wait as well, `draft_work_ms`, `beside_work_ms` (what the target reads while the draft works) and
    `target_work_ms` (what it does after) do not: they are what others wait for.
    """

    ttft_ms: float
    least_ms: float
    draft_ms: float
    target_ms: float
    draft_work_ms: float
    beside_work_ms: float
    target_work_ms: float
    step_ms: float
    read_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class SystemState:
    """What a forecast rests on beside the work. `cached_tokens` of the whole prompt are expected in the target's cache;
    `compressed` has the policies whose compressed prompt is cached, and how many of its tokens the target has too;
    `entries` those whose compressed entry is expected in the target's cache. `free_kv_tokens`: slots that no running
    request holds, None where that is not known; `answers`: those of ours that hold the others.
    """

    speeds: StageCosts = field(default_factory=StageCosts)
    load: QueuedWork = field(default_factory=QueuedWork)
    cached_tokens: int = 0
    compressed: tuple[tuple[object, int], ...] = ()
    entries: frozenset[object] = frozenset()
    reads_beside: bool = False
    free_kv_tokens: int | None = None
    answers: tuple[RunningAnswer, ...] = ()

    def forecast(self, work: RouteWork, answer_tokens: int = 0) -> Forecast:
        """What this work is predicted to take here and now. `answer_tokens` are to be generated after it."""
        speeds, load = self.speeds, self.load
        kv_wait_ms = self.kv_wait_ms(work.slots + answer_tokens)
        load = replace(load, target_ms=load.target_ms + kv_wait_ms) if kv_wait_ms else load
        draft_work_ms = 0.0 if work.draft is None else speeds.draft.ms(work.draft)
        draft_ms = 0.0 if work.draft is None else load.draft_ms + draft_work_ms
        scoring_ms = 0.0 if work.scoring is None else speeds.scoring.ms(work.scoring)
        reading_ms = speeds.target.ms(work.target)
        after_ms = reading_ms + scoring_ms
        beside_work_ms = 0.0 if work.beside is None else speeds.target.ms(work.beside)
        beside_ms = 0.0 if work.beside is None else load.target_ms + beside_work_ms
        queued_ms = 0.0 if work.beside is not None else load.target_ms
        first_ms = max(draft_ms, beside_ms) + speeds.contention * min(draft_ms, beside_ms)
        least_ms = load.spent_ms + queued_ms + (after_ms if speeds.scoring.observations else reading_ms)
        return Forecast(
            ttft_ms=load.spent_ms + first_ms + queued_ms + after_ms,
            least_ms=least_ms + (first_ms if speeds.draft.observations else beside_ms),
            draft_ms=draft_ms,
            target_ms=beside_ms + queued_ms + after_ms,
            draft_work_ms=draft_work_ms,
            beside_work_ms=beside_work_ms,
            target_work_ms=after_ms,
            step_ms=speeds.decoding.ms(TokenWork(work.kv_tokens)),
            read_tokens=work.read_tokens,
            kv_tokens=work.kv_tokens,
        )

    def kv_wait_ms(self, needed_tokens: int) -> float:
        """How long a request for that many KV slots waits until answers under way have freed what is missing.

        Answers end in the order of what is left of them. Where all of ours together free too little, others hold the
        rest: nothing is known of those, so the last of ours is waited for.
        """
        if self.free_kv_tokens is None or needed_tokens <= self.free_kv_tokens:
            return 0.0
        missing, waited_ms = needed_tokens - self.free_kv_tokens, 0.0
        for answer in sorted(self.answers, key=lambda each: each.remaining_ms):
            if missing <= 0:
                break
            missing, waited_ms = missing - answer.kv_tokens, answer.remaining_ms
        return waited_ms
