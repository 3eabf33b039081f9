"""A Score request as the draft reads it. What cannot be served is refused here, before it waits for the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import BudgetExceeded, InvalidRequest, PromptTooLong, RouteUnsupported
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecPc
from presift.core.spans import Span, covered
from presift.draft.scorer import ScoreTask, check_layers
from presift.rpc import wire
from presift.v1 import draft_pb2

SUPPORTED_ROUTES = (Route.SPEC_PC,)
# The widest kernel and neighbourhood: their cost grows with width x prompt, and one wide request would stall all
# others.
MAX_WIDTH_TOKENS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """What requests are held against."""

    model: ModelInfo
    max_lookahead_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request that can be served. `token_ids`: uint32[n]."""

    token_ids: NDArray[np.uint32]
    policy: SpecPc
    protected: tuple[Span, ...]
    lookahead_tokens: int

    @property
    def task(self) -> ScoreTask:
        """What to ask the scorer: a prompt that fits the capacity is not scored (design, SpecPC step 7)."""
        scored = self.policy if self.token_ids.size > self.policy.capacity else None
        return ScoreTask(self.token_ids, scored, self.lookahead_tokens)


def parse(message: draft_pb2.ScoreRequest, limits: Limits) -> Request:
    """Raises InvalidRequest, PromptTooLong, RouteUnsupported or BudgetExceeded, naming field, value and limit."""
    policy = _policy(message)
    _check_policy(policy, limits)
    _at_most("lookahead_tokens", message.lookahead_tokens, limits.max_lookahead_tokens)
    ids = wire.token_ids_from_wire(message.token_ids)
    _check_ids(ids, limits.model.vocabulary_size)
    request = Request(ids, policy, wire.spans_from_wire(message.protected_spans), message.lookahead_tokens)
    _check_context(request.task, limits.model.context_tokens)
    _check_capacity(request)
    return request


def _policy(message: draft_pb2.ScoreRequest) -> SpecPc:
    policy = wire.policy_from_wire(message.policy)
    if not isinstance(policy, SpecPc):
        raise RouteUnsupported("policy", message.policy.WhichOneof("policy"), ", ".join(SUPPORTED_ROUTES))
    return policy


def _check_policy(policy: SpecPc, limits: Limits) -> None:
    check_layers(policy, limits.model.layers)
    _at_most("spec_pc.kernel", policy.kernel, MAX_WIDTH_TOKENS)
    _at_most("spec_pc.neighbors", policy.neighbors, MAX_WIDTH_TOKENS)
    # The last of them is only generated, never fed: it costs nothing that the limit guards.
    _at_most("spec_pc.lookahead_tokens", policy.lookahead_tokens, limits.max_lookahead_tokens + 1)


def _at_most(field: str, value: int, most: int) -> None:
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
    """The window and the protected spans are kept whatever the scores, so they must fit before anything is scored."""
    tokens, policy = request.token_ids.size, request.policy
    window = Span(max(0, tokens - policy.window), tokens)
    kept = int(np.count_nonzero(covered((*request.protected, window), tokens)))
    if tokens > policy.capacity < kept:
        raise BudgetExceeded("protected_spans", kept, f"<= capacity ({policy.capacity}) tokens, the window included")
