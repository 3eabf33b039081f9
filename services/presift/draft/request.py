"""Parses and checks a Score request, so that a bad one is refused before it waits for the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import BudgetExceeded, InvalidRequest, PromptTooLong, RouteUnsupported
from presift.core.limits import check_limits
from presift.core.plan import ModelInfo
from presift.core.policies import POLICIES, SpecPc
from presift.core.spans import Span, must_keep
from presift.draft.demand import Demand, Mask, demand_of
from presift.draft.limits import MAX_WIDTH_TOKENS, SCORE
from presift.draft.scorer import ScoreTask, check_heads
from presift.rpc import codec
from presift.v1 import draft_pb2

SUPPORTED_ROUTES = tuple(kind.route for kind in POLICIES.values())


@dataclass(frozen=True, slots=True, eq=False)
class RequestLimits:
    """The model and the limit that requests are checked against."""

    model: ModelInfo
    max_lookahead_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A valid request. `token_ids`: uint32[n]; `lookahead_tokens`: what the caller requested besides the policy."""

    token_ids: NDArray[np.uint32]
    demand: Demand
    protected: tuple[Span, ...]
    lookahead_tokens: int
    include_importance: bool
    salt: str = ""

    @property
    def uses_scoring(self) -> bool:
        """Whether scores are needed: to select a mask, to count KV, or because the caller wants the importance."""
        return self.demand.mask is not Mask.NONE or self.demand.counting is not None or self.include_importance

    @property
    def task(self) -> ScoreTask:
        """The scorer's task. A prompt that fits the capacity is not scored (design, SpecPC step 7)."""
        is_scored = self.uses_scoring and self.token_ids.size > self.demand.scoring.capacity
        lookahead_tokens = max(self.lookahead_tokens, self.demand.lookahead_tokens)
        return ScoreTask(self.token_ids, self.demand.scoring if is_scored else None, lookahead_tokens, self.salt)


def parse(message: draft_pb2.ScoreRequest, limits: RequestLimits) -> Request:
    """Raises InvalidRequest, PromptTooLong or BudgetExceeded with field, value and limit."""
    check_limits(message, SCORE)
    request = Request(
        codec.token_ids_from_wire(message.token_ids),
        demand_of(codec.policy_from_wire(message.policy)),
        codec.spans_from_wire(message.protected_spans),
        message.lookahead_tokens,
        message.include_importance,
        message.cache_salt,
    )
    _check_work(request, limits)
    _check_ids(request.token_ids, limits.model.vocabulary_size)
    _check_context(request.task, limits.model.context_tokens)
    _check_capacity(request)
    return request


def _check_work(request: Request, limits: RequestLimits) -> None:
    if request.task.generated_tokens and not limits.model.can_look_ahead:
        limit = f"0 (the draft has only {limits.model.layers} of {limits.model.all_layers} layers loaded)"
        raise RouteUnsupported("lookahead_tokens", request.task.generated_tokens, limit)
    _check_at_most("lookahead_tokens", request.lookahead_tokens, limits.max_lookahead_tokens)
    _check_at_most("spec_kv.lookahead_tokens", request.demand.lookahead_tokens, limits.max_lookahead_tokens)
    if request.uses_scoring:
        _check_scoring(request.demand.scoring, limits)


def _check_scoring(policy: SpecPc, limits: RequestLimits) -> None:
    check_heads(policy, limits.model.layers, has_profile=bool(limits.model.head_profile))
    _check_at_most("spec_pc.kernel", policy.kernel, MAX_WIDTH_TOKENS)
    _check_at_most("spec_pc.neighbors", policy.neighbors, MAX_WIDTH_TOKENS)
    # The last token is only generated and never read, so it costs no forward pass.
    _check_at_most("spec_pc.lookahead_tokens", policy.lookahead_tokens, limits.max_lookahead_tokens + 1)


def _check_at_most(field: str, value: int, most: int) -> None:
    if value > most:
        raise InvalidRequest(field, value, f"<= {most}")


def _check_ids(ids: NDArray[np.uint32], vocabulary_size: int) -> None:
    if ids.size == 0:
        raise InvalidRequest("token_ids", "empty", ">= 1 token")
    if (worst := int(ids.max())) >= vocabulary_size:
        raise InvalidRequest("token_ids", worst, f"< {vocabulary_size} (the draft's vocabulary)")


def _check_context(task: ScoreTask, context_tokens: int) -> None:
    if (needed := task.prompt_tokens + task.generated_tokens) > context_tokens:
        raise PromptTooLong(
            "token_ids", f"{needed} tokens with lookahead", f"<= {context_tokens} (the draft's context)"
        )


def _check_capacity(request: Request) -> None:
    """Window and protected spans are always kept, so they must fit the capacity.

    This also holds if the target selects: it would refuse the same request after a prefill.
    """
    demand = request.demand
    _check_selection(request, demand.scoring, demand.extra_kept_tokens)
    if demand.counting is not None:
        _check_selection(request, demand.counting, 1)


def _check_selection(request: Request, policy: SpecPc, extra_kept_tokens: int) -> None:
    tokens = request.token_ids.size
    kept = int(np.count_nonzero(must_keep(request.protected, tokens, policy.window)))
    if tokens > policy.capacity < kept:
        # Both without the extra final token, so that the message names the capacity that the caller set.
        needed, capacity = kept - extra_kept_tokens, policy.capacity - extra_kept_tokens
        raise BudgetExceeded("protected_spans", needed, f"<= capacity ({capacity}) tokens, the window included")
