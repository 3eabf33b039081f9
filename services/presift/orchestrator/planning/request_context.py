"""A request as it is planned: tokenized, checked against limits, with its defaults and its replica of the target."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from presift.core.errors import InvalidRequest
from presift.core.plan import ModelInfo, Route
from presift.core.policies import KvSelection
from presift.core.spans import must_keep, must_keep_kv
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.domain.limits import check_tokens
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Target, TargetInfo
from presift.orchestrator.domain.request import KvLookahead, KvOptions, Request, TokenizedPrompt
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.answer_length import reserved_tokens
from presift.orchestrator.planning.capabilities import beyond_routes
from presift.orchestrator.planning.replica_picker import ReplicaPicker
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.routing.choice import RoutingInputs
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.quality_gate import QualityGate


class Reservation(Protocol):
    """Counts a request at a replica until it is closed; it may be closed again."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Everything that a plan is made from.

    `inputs` hold one snapshot of costs, at `replica`, and the defaults for `draft`, which is None while none is
    connected. Tokenizing took `tokenize_ms`; `arrived` is on `time.perf_counter`.
    """

    tokens: TokenizedPrompt
    target: ModelInfo
    inputs: RoutingInputs
    draft: ModelInfo | None
    replica: ReplicaRef = ANY_REPLICA
    tokenize_ms: float = 0.0
    arrived: float = 0.0


class PromptReader:
    """Reads prompts and makes the contexts of their requests. Knows no draft service, and makes no decision but that of
    the replica."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        models: ModelRegistry,
        policies: PolicySource,
        estimator: CostEstimator,
        *,
        gate: QualityGate,
        target: Target,
    ) -> None:
        self._tokenizer = tokenizer
        self._models = models
        self._policies = policies
        self._estimator = estimator
        self._gate = gate
        self._target = target
        self._replicas = ReplicaPicker(target, models, estimator)

    async def read(self, request: Request) -> tuple[TokenizedPrompt, float]:
        """The prompt's tokens with its protected spans, and how many milliseconds that took.

        Raises InvalidRequest or PromptTooLong.
        """
        started = time.perf_counter()
        tokens = await self._tokenizer.tokenize(request.prompt, request.salt)
        prompt_tokens = int(tokens.ids.size)
        check_tokens(prompt_tokens)
        check_vocabulary(tokens, self._models.known_target())
        request.kv.check_continues(prompt_tokens)
        return tokens, (time.perf_counter() - started) * 1000

    @contextmanager
    def context(
        self, request: Request, tokens: TokenizedPrompt, tokenize_ms: float, arrived: float, *, explains: bool = False
    ) -> Iterator[tuple[RequestContext, Reservation]]:
        """The context of a request at one replica of the target, which counts as busy until the block ends, or until
        the reservation is closed. `explains`: what is kept will be shown, and nothing generated."""
        target = self._models.known_target()
        states = self._replicas.states(tokens, target.model, (time.perf_counter() - arrived) * 1000)
        own = next(iter(states))
        draft = self._models.draft
        inputs = self._inputs(request, tokens, target, draft, states[own], explains=explains)
        replica = self._replicas.pick(inputs, states)
        if replica != own:
            inputs = replace(inputs, state=states[replica])
        with ExitStack() as reservation:
            reservation.enter_context(self._target.reserve(replica))
            yield RequestContext(tokens, target.model, inputs, draft, replica, tokenize_ms, arrived), reservation

    def refreshed(self, context: RequestContext) -> RequestContext:
        """The same context with a new snapshot of costs."""
        tokens, replica = context.tokens, context.replica.name
        spent_ms = (time.perf_counter() - context.arrived) * 1000
        state = self._estimator.state(
            tokens.ids, context.target, context.draft, spent_ms, salt=tokens.salt, replica=replica
        )
        return replace(context, inputs=replace(context.inputs, state=state))

    def _kv_options(self, request: Request, lookahead: KvLookahead, *, explains: bool) -> KvOptions:
        """The request's, with the draft's lookahead where AUTO would choose and KV must be selected before the answer:
        to show it, or so that another target can continue the answer. `lookahead` is the default."""
        if lookahead is KvLookahead.TARGET or not self._models.has_lookahead_now:
            return request.kv
        if request.migrate:
            return request.kv.selecting_once
        return request.kv.by_draft if explains else request.kv

    def _inputs(
        self,
        request: Request,
        tokens: TokenizedPrompt,
        target: TargetInfo,
        draft: ModelInfo | None,
        state: SystemState,
        *,
        explains: bool,
    ) -> RoutingInputs:
        prompt_tokens = int(tokens.ids.size)
        effective = self._policies.table.lookup(prompt_tokens, target.model.id, request.tenant)
        defaults = effective.defaults.for_draft(draft)
        kept = must_keep(tokens.protected, prompt_tokens, defaults.spec_pc.window)
        kept_tokens = int(np.count_nonzero(kept))
        kept_kv = must_keep_kv(tokens.protected, prompt_tokens, defaults.spec_kv.window)
        shares_ids = draft is not None and draft.shares_vocabulary(target.model)
        inputs = RoutingInputs(
            prompt_tokens=prompt_tokens,
            must_keep=kept_tokens,
            must_keep_kv=int(np.count_nonzero(kept_kv)),
            protected_kinds=tokens.protected_kinds,
            reserved_tokens=reserved_tokens(
                request.sampling,
                prompt_tokens,
                kept_tokens,
                target.model.context_tokens,
                is_default=request.has_default_length,
            ),
            context_tokens=target.model.context_tokens,
            supported=target.supported,
            defaults=defaults,
            wanted=request.route,
            budget=effective.complete_budget(request.budget),
            options=self._kv_options(request, defaults.lookahead, explains=explains),
            state=state,
            unsupported=target.unsupported,
            off=self._gate.off(prompt_tokens, tokens.salt),
            beyond=beyond_routes(request),
            kv_page_tokens=target.kv_page_tokens,
            kv_pool_tokens=target.kv_pool_tokens,
            least_new_tokens=request.sampling.least_tokens,
            draft_context_tokens=draft.context_tokens if draft is not None and shares_ids else 0,
            draft_looks_ahead=self._models.has_lookahead_now,
        )
        if inputs.lookahead is not KvLookahead.DRAFT or inputs.lookahead_tokens == 0:
            return inputs
        missing = routes_without_lookahead(draft, inputs.selection)
        unsupported = {**inputs.unsupported, **missing}
        return replace(inputs, supported=inputs.supported - missing.keys(), unsupported=unsupported)


def routes_without_lookahead(draft: ModelInfo | None, selection: KvSelection) -> dict[Route, str]:
    """The routes that need tokens which `draft` cannot generate, each with the reason."""
    if draft is None or draft.can_look_ahead:
        return {}
    reason = f"the draft has {draft.layers} of {draft.all_layers} layers loaded, so it generates no lookahead"
    needing = [Route.SPEC_KV_PC] + ([Route.SPEC_KV] if selection is KvSelection.TARGET_LOOKAHEAD else [])
    return dict.fromkeys(needing, reason)


def check_vocabulary(tokens: TokenizedPrompt, target: TargetInfo) -> None:
    """Raise InvalidRequest if the prompt has no token, or one that is not in the target's vocabulary."""
    if tokens.ids.size == 0:  # a normaliser may leave nothing of a text
        raise InvalidRequest("prompt", "empty", "at least one token")
    highest = int(tokens.ids.max())
    if highest >= target.model.vocabulary_size:
        raise InvalidRequest("prompt.token_ids", highest, f"< {target.model.vocabulary_size} (the vocabulary)")
