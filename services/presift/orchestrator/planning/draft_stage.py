"""Drafting: the draft's part of one request, with the target reading beside it where that hides the draft's time.

Trouble on the draft's side ends in the full context, never in an error, unless the full prompt cannot fit.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from presift.core.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    DraftUnavailable,
    InternalError,
    Overloaded,
    PresiftError,
    PromptTooLong,
)
from presift.core.plan import Route
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import ANY_REPLICA, MaskRejected, ReplicaRef
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.planning.compressor import CompressionResult, Compressor
from presift.orchestrator.planning.mask_validation import DraftChanged, ScoringJob
from presift.orchestrator.planning.prefill import Prefiller, beside
from presift.orchestrator.prompt.tokenizer import Tokenized
from presift.orchestrator.routing.choice import Defaults, Facts, Reason, RouteChoice, check_fits
from presift.orchestrator.routing.decision import CacheOutcome
from presift.orchestrator.routing.forecast import with_forecast
from presift.telemetry.metrics import count

log = logging.getLogger(__name__)

# Of what is left, for the draft where nothing is known of the target's speed yet.
UNKNOWN_SHARE = 0.5
# Predictions are not exact, and least of all on a busy host, where the draft is late as well.
_MARGIN = 1.5
# The draft gets at least this much, for a compressed prompt may be the only one that can be read in time; and at most
# that much, whatever is predicted.
_LEAST_SHARE, _MOST_SHARE = 0.25, 0.75

# First match wins; any other trouble counts as unavailability.
_REASONS: tuple[tuple[type[PresiftError], Reason], ...] = (
    (DraftChanged, Reason.DRAFT_CHANGED),
    (MaskRejected, Reason.MASK_REJECTED),
    (Overloaded, Reason.DRAFT_OVERLOADED),
    (DeadlineExceeded, Reason.DRAFT_TIMEOUT),
    (PresiftError, Reason.DRAFT_UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class DraftResult:
    """A choice after the draft was asked: the same with a compressed prompt, or route full without."""

    choice: RouteChoice
    compressed: CompressionResult | None
    prefill_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DraftJob:
    """A request that needs the draft. `defaults` are those of this request; `limit_s` is the draft's share of what the
    caller's deadline leaves, in seconds, None for none; `at` is where the target will read."""

    choice: RouteChoice
    tokens: Tokenized
    facts: Facts
    budget: Budget
    defaults: Defaults
    limit_s: float | None
    at: ReplicaRef = ANY_REPLICA


class DraftStage:
    """Asks the draft. `prefiller` None lets the target wait until the draft has answered."""

    def __init__(self, models: ModelRegistry, compressor: Compressor, prefiller: Prefiller | None = None) -> None:
        self._models = models
        self._compressor = compressor
        self._prefiller = prefiller

    async def draft(self, job: DraftJob) -> DraftResult:
        """Raises DraftUnavailable where the full prompt cannot fit, or may not (`strict`); PromptTooLong where it
        exceeds the draft's context too."""
        try:
            scoring = self.scoring(job.choice, job.tokens, job.defaults)
        except DraftUnavailable as error:
            return self._in_full(error, job)
        job = replace(job, choice=replace(job.choice, policy=scoring.policy))
        reads_all = job.choice.route is Route.SPEC_KV and job.choice.keep_full_prefix
        if self._prefiller is None or not reads_all:
            return await self._compress(scoring, job, None)
        return await self._compress_beside(scoring, job, self._prefiller)

    def scoring(self, choice: RouteChoice, tokens: Tokenized, defaults: Defaults) -> ScoringJob:
        """What to ask the draft for. Raises DraftUnavailable while there is none."""
        draft, target = self._models.known_draft(), self._models.target
        if choice.policy is None or target is None:
            raise InternalError(f"route {choice.route} has no policy")
        policy = defaults.for_draft(choice.policy, draft.layers)
        return ScoringJob(tokens, policy, draft, target.model)

    async def _compress_beside(self, scoring: ScoringJob, job: DraftJob, prefiller: Prefiller) -> DraftResult:
        missed, prefill_ms = asyncio.Event(), 0.0
        async with beside(prefiller.read_after(missed, job.tokens, job.at)) as reading:
            # Where the draft fails, reading goes on: the full prompt is what Generate will need.
            drafted = await self._compress(scoring, job, missed)
            if missed.is_set():
                prefill_ms = await reading
            elif drafted.compressed is not None and drafted.compressed.cache is CacheOutcome.SHARED:
                prefill_ms = await prefiller.join(job.tokens, job.at)
        return replace(drafted, prefill_ms=prefill_ms)

    async def _compress(self, scoring: ScoringJob, job: DraftJob, missed: asyncio.Event | None) -> DraftResult:
        try:
            async with asyncio.timeout(job.limit_s):
                return DraftResult(job.choice, await self._compressor.compress(scoring, missed))
        except TimeoutError:
            late = DeadlineExceeded(f"no mask after {job.limit_s:.1f} s, its share of the time that the caller gave")
            return self._in_full(late, job)
        except PresiftError as error:
            return self._in_full(error, job)

    def _in_full(self, error: PresiftError, job: DraftJob) -> DraftResult:
        if isinstance(error, DraftChanged):
            self._models.draft_changed()
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        count("presift.fallbacks", reason=reason.value)
        log.warning("answered in full: %s: %s", reason, error.message)
        check_allowed(error, job.budget, job.facts)
        return DraftResult(RouteChoice(Route.FULL, reason, f"{error.message}; nothing was dropped"), None)


def in_time(drafted: DraftResult, budget: Budget, facts: Facts) -> RouteChoice:
    """The choice; where it is full by now, with its forecast, and DraftUnavailable where a strict budget forbids it."""
    if drafted.compressed is not None:
        return drafted.choice
    if drafted.prefill_ms:  # the target has read it all
        facts = replace(facts, outlook=replace(facts.outlook, cached_tokens=facts.prompt_tokens))
    try:
        return with_forecast(drafted.choice, budget, facts)
    except BudgetExceeded as error:
        raise DraftUnavailable(error.message) from error


def check_allowed(error: PresiftError, budget: Budget, facts: Facts) -> None:
    """Raise DraftUnavailable where the full prompt is no way out; PromptTooLong where the draft will never read it."""
    if budget.strict and budget.capacity is not None and facts.prompt_tokens > budget.capacity:
        raise _no_way_out(error, "the strict budget allows no full prompt") from error
    try:
        check_fits(facts)
    except PromptTooLong as too_long:
        raise _no_way_out(error, f"and the full prompt does not fit: {too_long.message}") from error


def _no_way_out(error: PresiftError, why: str) -> PresiftError:
    text = f"{error.message}; {why}"
    # Unavailability would ask for a retry, and every one would end the same.
    if isinstance(error, PromptTooLong):
        return PromptTooLong("prompt", error.value, error.limit, text)
    return DraftUnavailable(text)


def draft_share_s(left_s: float, target_s: float | None) -> float:
    """Seconds for the draft: without those that the target is predicted to need then for reading everything and for
    answering (None where that is not known).
    """
    if target_s is None:
        return UNKNOWN_SHARE * left_s
    return min(_MOST_SHARE * left_s, max(_LEAST_SHARE * left_s, left_s - _MARGIN * target_s))
