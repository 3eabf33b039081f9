"""The draft's part of one request; the target may read the prompt meanwhile, which hides the draft's time.

If the draft fails and the full prompt fits, the target reads it; the request does not fail. Where the target may look
ahead itself, the route stays.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    DraftUnavailable,
    InternalError,
    Overloaded,
    PresiftError,
    PromptTooLong,
)
from presift.core.plan import ModelInfo, Route
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.background import background
from presift.orchestrator.domain.ports import MaskRejected
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.compressor import CompressionResult, Compressor
from presift.orchestrator.planning.mask_validation import DraftChanged, ScoringJob
from presift.orchestrator.planning.prefill import Prefiller
from presift.orchestrator.planning.request_context import RequestContext
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs, with_clause
from presift.orchestrator.routing.decision import CacheOutcome
from presift.orchestrator.routing.forecast import answer_seconds, with_forecast
from presift.orchestrator.routing.full_route import check_fits_shortest_answer
from presift.orchestrator.routing.kv_routes import without_draft
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.telemetry.metrics import count
from presift.telemetry.repeated_warnings import RepeatedWarnings

# The draft's share of the time that is left, as long as the target's speed is unknown.
UNKNOWN_SHARE = 0.5
# Predictions are least exact on a busy host, where the draft is late as well.
_MARGIN = 1.5
# The draft gets at least this share, because only a compressed prompt may be readable in time; and at most that one,
# whatever is predicted.
_LEAST_SHARE, _MOST_SHARE = 0.25, 0.75

# The longest error in a decision's detail.
_DETAIL_CHARACTERS = 100

# The first match counts; every other error is unavailability.
_REASONS: tuple[tuple[type[PresiftError], Reason], ...] = (
    (DraftChanged, Reason.DRAFT_CHANGED),
    (MaskRejected, Reason.MASK_REJECTED),
    (Overloaded, Reason.DRAFT_OVERLOADED),
    (DeadlineExceeded, Reason.DRAFT_TIMEOUT),
    (PromptTooLong, Reason.DRAFT_CONTEXT_TOO_SMALL),
    (PresiftError, Reason.DRAFT_UNAVAILABLE),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DraftResult:
    """The choice after the draft stage: with a compressed prompt, or one that needs no draft.

    `importance`: float32[prompt_tokens], only for explanations.
    """

    choice: RouteChoice
    compressed: CompressionResult | None
    prefill_ms: float = 0.0
    importance: NDArray[np.float32] | None = None


class DraftStage:
    """Asks the draft. Without a `prefiller` the target reads nothing until the draft has answered."""

    def __init__(self, models: ModelRegistry, compressor: Compressor, prefiller: Prefiller | None = None) -> None:
        self._models = models
        self._compressor = compressor
        self._prefiller = prefiller
        self._warnings = RepeatedWarnings(log)

    async def run(self, choice: RouteChoice, context: RequestContext, deadline: Deadline) -> DraftResult:
        """Compress the prompt by the choice's policy, within the draft's share of the time until the deadline.

        Raises DraftUnavailable if the full prompt does not fit, or is not allowed (`strict`); PromptTooLong if it
        exceeds the draft's context too; DeadlineExceeded if no time is left.
        """
        limit = draft_deadline(deadline, context.inputs)
        try:
            job = self._job_of(choice, context)
        except DraftUnavailable as error:
            return self._without_draft(error, choice, context)
        if self._prefiller is not None and job.policy.reads_whole_prompt and choice.keep_full_prefix:
            return await self._compress_with_prefill(job, choice, context, limit, self._prefiller)
        return await self._compress(job, choice, context, limit, None)

    async def explain(self, choice: RouteChoice, context: RequestContext) -> DraftResult:
        """The compressed prompt with its importance, always from the draft. Raises the errors of the draft."""
        defaults = context.inputs.defaults
        job = self._job_of(choice, context)
        shown = replace(job, policy=job.policy.with_scoring(defaults.spec_pc))
        try:
            compressed, importance = await self._compressor.explain(shown)
        except DraftChanged:
            self._models.find_draft_again()
            raise
        return DraftResult(choice, compressed, importance=importance)

    def resolve_undrafted(self, result: DraftResult, inputs: RoutingInputs) -> RouteChoice:
        """The choice of a result without a compressed prompt. Raises DraftUnavailable if a strict budget forbids it."""
        if result.prefill_ms:  # the target has read the whole prompt
            inputs = replace(inputs, state=replace(inputs.state, cached_tokens=inputs.prompt_tokens))
        try:
            choice = with_forecast(result.choice, inputs)
        except BudgetExceeded as error:
            self._warn("refused", result.choice.reason, error.message)
            raise DraftUnavailable(error.message) from error
        how = "in full" if choice.policy is None else "with the target's lookahead"
        self._warn(f"answered {how}", choice.reason, choice.detail)
        return choice

    def job(self, choice: RouteChoice, tokens: TokenizedPrompt, target: ModelInfo) -> ScoringJob:
        """The request to the draft. Raises DraftUnavailable while no draft is connected."""
        draft = self._models.known_draft()
        if choice.policy is None:
            raise InternalError(f"route {choice.route} has no policy")
        return ScoringJob(tokens, choice.policy, draft, target)

    def _job_of(self, choice: RouteChoice, context: RequestContext) -> ScoringJob:
        if context.draft is None:  # the policy was not made for the draft that may be connected now
            raise DraftUnavailable("no draft is connected")
        return self.job(choice, context.tokens, context.target)

    async def _compress_with_prefill(
        self,
        job: ScoringJob,
        choice: RouteChoice,
        context: RequestContext,
        limit: Deadline,
        prefiller: Prefiller,
    ) -> DraftResult:
        missed, prefill_ms = asyncio.Event(), 0.0
        async with background(prefiller.read_after(missed, context.tokens, context.replica)) as reading:
            # If the draft fails, the reading continues: Generate will need the full prompt.
            result = await self._compress(job, choice, context, limit, missed)
            if missed.is_set():
                prefill_ms = await reading
            elif result.compressed is not None and result.compressed.cache is CacheOutcome.SHARED:
                prefill_ms = await prefiller.join(context.tokens, context.replica)
        return DraftResult(result.choice, result.compressed, prefill_ms)

    async def _compress(
        self,
        job: ScoringJob,
        choice: RouteChoice,
        context: RequestContext,
        limit: Deadline,
        missed: asyncio.Event | None,
    ) -> DraftResult:
        limit_s = limit.remaining_s
        try:
            async with limit.timeout():
                compressed = await self._compressor.compress(job, missed)
        except TimeoutError:
            late = DeadlineExceeded(f"no mask within {limit_s:.1f} s, the draft's share of the request's time")
            return self._without_draft(late, choice, context)
        except PresiftError as error:
            return self._without_draft(error, choice, context)
        return DraftResult(choice, compressed)

    def _without_draft(self, error: PresiftError, choice: RouteChoice, context: RequestContext) -> DraftResult:
        """The same route with the target's lookahead if that is allowed, else the full prompt."""
        if isinstance(error, DraftChanged):
            self._models.find_draft_again()
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        instead = without_draft(choice, context.inputs)
        count("presift.fallbacks", reason=reason.value, route=(instead.route if instead else Route.FULL).value)
        if instead is not None:
            return DraftResult(replace(instead, detail=with_clause(choice.detail, as_detail(error.message))), None)
        return self._in_full(error, reason, context)

    def _in_full(self, error: PresiftError, reason: Reason, context: RequestContext) -> DraftResult:
        """The full prompt. Raises as `check_allowed` if it is not allowed."""
        try:
            check_allowed(error, context.inputs)
        except PresiftError as refusal:
            self._warn("refused", reason, refusal.message)
            raise
        return DraftResult(RouteChoice(Route.FULL, reason, as_detail(error.message)), None)

    def _warn(self, what: str, reason: Reason, detail: str) -> None:
        self._warnings.warn(f"{what}: {reason}", f"{what}: {reason}: {detail}")


def as_detail(message: str) -> str:
    """An error as the detail of a decision: a peer's may be long, and have control characters."""
    printable = "".join(character if character.isprintable() else " " for character in message)
    return shorten("; ".join(printable.split("; ")[:2]), _DETAIL_CHARACTERS, placeholder=" ...")


def check_allowed(error: PresiftError, inputs: RoutingInputs) -> None:
    """Raise an error if the full prompt cannot be used instead: DraftUnavailable, or PromptTooLong if the draft will
    never read it either."""
    capacity = inputs.budget.capacity
    if inputs.budget.strict and capacity is not None and inputs.prompt_tokens > capacity:
        raise _full_is_impossible(error, "the strict budget allows no full prompt") from error
    try:
        check_fits_shortest_answer(inputs)
    except PromptTooLong as too_long:
        raise _full_is_impossible(error, f"and the full prompt does not fit: {too_long.message}") from error


def draft_deadline(deadline: Deadline, inputs: RoutingInputs) -> Deadline:
    """When the draft must have answered. Raises DeadlineExceeded if no time is left."""
    deadline.check()
    left_s = deadline.remaining_s
    return NO_DEADLINE if left_s is None else Deadline.within(draft_share_s(left_s, answer_seconds(inputs)))


def draft_share_s(left_s: float, target_s: float | None) -> float:
    """Seconds for the draft out of `left_s`. `target_s` is predicted for the target to read everything and to answer,
    None if unknown."""
    if target_s is None:
        return UNKNOWN_SHARE * left_s
    return min(_MOST_SHARE * left_s, max(_LEAST_SHARE * left_s, left_s - _MARGIN * target_s))


def _full_is_impossible(error: PresiftError, why: str) -> PresiftError:
    text = f"{error.message}; {why}"
    # Unavailability would invite a retry, which would end the same way.
    if isinstance(error, PromptTooLong):
        return PromptTooLong("prompt", error.value, error.limit, text, error.sizes)
    return DraftUnavailable(text)
