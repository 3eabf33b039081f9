"""Planning: from a request to a plan. Tokenise, protect, go on with an earlier turn or route and draft."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import SpecKv
from presift.core.spans import must_keep
from presift.orchestrator import measures
from presift.orchestrator.candidates import Question, candidates
from presift.orchestrator.choices import Choice, Defaults, Facts
from presift.orchestrator.compression import Compressor
from presift.orchestrator.costs import Outlook
from presift.orchestrator.coverage import Ask, coverages_of_turn, covers, settled
from presift.orchestrator.deadline import Deadline, draft_share_s
from presift.orchestrator.decision import Plan
from presift.orchestrator.drafting import Draftable, Drafter, in_time
from presift.orchestrator.economy import Economy
from presift.orchestrator.forecasting import answering_s, in_full, with_forecast
from presift.orchestrator.guard.switches import Switches
from presift.orchestrator.guard.usual import is_tighter
from presift.orchestrator.kv_routing import continue_kv
from presift.orchestrator.limits import check_tokens
from presift.orchestrator.models import Models
from presift.orchestrator.plans import Origin, continued_plan, plan_of, turn_of
from presift.orchestrator.ports import ANYWHERE, Seat, TargetInfo
from presift.orchestrator.prefilling import Prefiller
from presift.orchestrator.request import Request
from presift.orchestrator.routing import avoided, check_served, choose
from presift.orchestrator.seating import Usher
from presift.orchestrator.stages import stage
from presift.orchestrator.terms_in_force import TermsInForce
from presift.orchestrator.tokenizer import PromptTokenizer, Tokenized
from presift.orchestrator.turns import Turn, Turns
from presift.orchestrator.verification import (
    DraftChanged,
    Scoring,
    keeps_what_is_protected,
)

# Told the prompt's tokens; raises where its caller may not use them.
Spend = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Case:
    """One request, read, its budget completed by its terms. `started` by the performance counter, in seconds; `at` is
    the target's replica."""

    request: Request
    defaults: Defaults
    origin: Origin
    facts: Facts
    started: float
    at: Seat = ANYWHERE


class Planner:
    """Plans requests; remembers the turns that were answered."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        models: Models,
        compressor: Compressor,
        terms: TermsInForce,
        *,
        prefiller: Prefiller | None = None,
        turns: Turns | None = None,
        economy: Economy | None = None,
        switches: Switches | None = None,
        usher: Usher | None = None,
    ) -> None:
        self._usher = usher
        self._tokenizer = tokenizer
        self._models = models
        self._compressor = compressor
        self._terms = terms
        self._drafter = Drafter(models, compressor, prefiller)
        self.economy = Economy(learns=False, reads_beside=prefiller is not None) if economy is None else economy
        self._turns = Turns(0) if turns is None else turns
        self._switches = Switches() if switches is None else switches

    async def plan(
        self,
        request: Request,
        target: TargetInfo,
        time_left_s: float | None = None,
        waited_s: float = 0.0,
        *,
        spend: Spend | None = None,
        held: ExitStack | None = None,
    ) -> Plan:
        """`waited_s` since the request's arrival; `spend` is asked before any work is given to draft or target; the
        seat at the target is taken for as long as `held` is open. Raises InvalidRequest, PromptTooLong, BudgetExceeded,
        RouteUnsupported; DraftUnavailable only where the full prompt cannot fit (or may not: `strict`);
        DeadlineExceeded before the draft would be asked too late."""
        deadline = Deadline.within(time_left_s)
        case = self._seated(await self._read(request, target, spend, waited_s))
        if held is not None and self._usher is not None:
            held.enter_context(self._usher.holding(case.at))
        turn = self._turn(case)
        plan = self._continued(turn, case) if isinstance(turn, Turn) else _saying(turn, await self._new(case, deadline))
        measures.tell_decision(plan.decision)
        return replace(plan, is_tighter=self._is_tighter(plan, case), at=case.at)

    async def explain(self, request: Request, target: TargetInfo, spend: Spend | None = None) -> Plan:
        """The same plan with importance, always from the draft, and the routes that there were; a later turn that goes
        on with an earlier selection has neither. Here the draft's trouble is an error.
        """
        case = self._seated(await self._read(request, target, spend))
        turn = self._turn(case)
        plan = self._continued(turn, case) if isinstance(turn, Turn) else _saying(turn, await self._explained(case))
        return replace(plan, at=case.at)

    def remember(self, plan: Plan) -> None:
        """The target has begun to answer under this plan: a later turn may go on with its selection."""
        turn = turn_of(plan)
        if turn is not None:
            self._turns.remember(plan.read_ids, turn, plan.salt)

    async def _read(self, request: Request, target: TargetInfo, spend: Spend | None, waited_s: float = 0.0) -> _Case:
        started = time.perf_counter()
        tokens = await self._tokenizer.tokenize(request.prompt, request.salt)
        check_tokens(int(tokens.ids.size))
        check_vocabulary(tokens, target)
        request.kv.check_continues(int(tokens.ids.size))
        tokenize_ms = (time.perf_counter() - started) * 1000
        if spend is not None:
            await spend(int(tokens.ids.size))
        origin = Origin(tokens, target.model, tokenize_ms)
        terms = self._terms.table.terms_for(int(tokens.ids.size), target.model.id, request.tenant)
        request = replace(request, budget=terms.budget_over(request.budget))
        facts = self.facts(request, tokens, target, terms.defaults)
        return _Case(request, terms.defaults, origin, facts, started - waited_s)

    def _seated(self, case: _Case) -> _Case:
        """With its place among the target's replicas, which all that follows is predicted for."""
        if self._usher is None or not self._usher.has_choice:
            return case
        question = self._question(case)
        seat = self._usher.seat(case.request.route, question, case.origin.tokens, case.origin.target)
        return replace(case, at=seat)

    def facts(self, request: Request, tokens: Tokenized, target: TargetInfo, defaults: Defaults) -> Facts:
        """What the choice of a route rests on."""
        prompt_tokens = int(tokens.ids.size)
        kept = must_keep(tokens.protected, prompt_tokens, defaults.spec_pc.window)
        # Of the KV all but the final token's, which comes on top.
        kept_kv = must_keep(tokens.protected, prompt_tokens, defaults.spec_kv.window + 1)[:-1]
        return Facts(
            prompt_tokens=prompt_tokens,
            must_keep=int(np.count_nonzero(kept)),
            must_keep_kv=int(np.count_nonzero(kept_kv)),
            max_new_tokens=request.sampling.max_new_tokens,
            context_tokens=target.model.context_tokens,
            supported=target.supported,
            unsupported=target.unsupported,
            kv_page_tokens=target.kv_page_tokens,
            kv_pool_tokens=target.kv_pool_tokens,
            off=self._switches.off(prompt_tokens),
            draft_context_tokens=self._draft_context_tokens(target),
        )

    def _draft_context_tokens(self, target: TargetInfo) -> int:
        draft = self._models.draft
        return draft.context_tokens if draft is not None and draft.shares_vocabulary(target.model) else 0

    def _turn(self, case: _Case) -> Turn | str:
        """The earlier turn to go on with; or why there is none, in words, empty for a new prompt."""
        request, tokens, wanted = case.request, case.origin.tokens, case.request.kv.continue_prompt_tokens
        if wanted is None:
            return ""
        check_served(request.route, case.facts)
        if Route.SPEC_KV in case.facts.off:
            return f"not gone on with the selection of {wanted} tokens: {Route.SPEC_KV} {case.facts.off[Route.SPEC_KV]}"
        turn = self._turns.recall(tokens.ids[:wanted], tokens.salt)
        if turn is None:
            return f"there is no selection of the first {wanted} prompt tokens to go on with, so this is a new prompt"
        if not keeps_what_is_protected(turn.kv_plan, tokens.protected, int(tokens.ids.size)):
            return f"not gone on with the selection of {wanted} tokens: it may have dropped what is protected now"
        if not covers(coverages_of_turn(turn), request.budget):
            return f"not gone on with the selection of {wanted} tokens: it is not known to cover min_coverage"
        return turn

    def _continued(self, turn: Turn, case: _Case) -> Plan:
        """The plan of a later turn."""
        request, tokens = case.request, case.origin.tokens
        facts, begun = self._question(case).facts, tokens.ids[: turn.kv_plan.prompt_tokens]
        # The entry is that of the prompt which it was chosen for.
        entries = self._outlook(begun, case).entries
        facts = replace(facts, outlook=replace(facts.outlook, entries=entries))
        choice = with_forecast(continue_kv(turn.kv_plan, request.budget, request.kv, facts), request.budget, facts)
        return continued_plan(choice, turn, case.origin)

    def _is_tighter(self, plan: Plan, case: _Case) -> bool:
        everyones = self._terms.table.terms_for(case.facts.prompt_tokens, case.origin.target.id)
        policy = plan.decision.policy if plan.avoided is None else plan.avoided.policy
        return policy is not None and is_tighter(policy, everyones, case.facts.kv_page_tokens)

    async def _new(self, case: _Case, deadline: Deadline) -> Plan:
        async def drafted(choice: Choice) -> tuple[Plan, Choice]:
            return await self._drafted(choice, case, deadline)

        plan = await self._settled(case, drafted)
        self.economy.drafted(case.origin.tokens.ids, plan)
        return plan

    async def _explained(self, case: _Case) -> Plan:
        async def explained(choice: Choice) -> tuple[Plan, Choice]:
            return await self._seen(choice, case), choice

        routes = tuple(candidates(self._question(case)))
        return replace(await self._settled(case, explained), routes=routes)

    async def _settled(self, case: _Case, ask: Ask) -> Plan:
        with stage("route"):
            question = self._question(case)
            choice = choose(case.request.route, question.budget, question.options, question.facts, question.defaults)
        found = await settled(choice, ask, lambda: self._question(case))
        plan = found if isinstance(found, Plan) else plan_of(found, None, 0.0, case.origin)
        plan = replace(plan, full_ttft_ms=in_full(question.facts).ttft_ms)
        return replace(plan, avoided=avoided(choice, case.request.route, question)) if question.facts.off else plan

    async def _drafted(self, choice: Choice, case: _Case, deadline: Deadline) -> tuple[Plan, Choice]:
        left_s = deadline.left_s()
        limit_s = None if left_s is None else draft_share_s(left_s, answering_s(self._question(case).facts))
        job = Draftable(choice, case.origin.tokens, case.facts, case.request.budget, case.defaults, limit_s, case.at)
        with self.economy.compressing(case.origin.tokens.ids, choice, case.origin.tokens.salt, case.at.replica):
            drafted = await self._drafter.draft(job)
        choice = in_time(drafted, case.request.budget, self._question(case).facts)
        return plan_of(choice, drafted.compressed, drafted.prefill_ms, case.origin), choice

    async def _seen(self, choice: Choice, case: _Case) -> Plan:
        scoring = self._drafter.scoring(choice, case.origin.tokens, case.defaults)
        try:
            compressed, importance = await self._compressor.explain(_with_mask(scoring, case.defaults))
        except DraftChanged:
            self._models.draft_changed()
            raise
        choice = replace(choice, policy=scoring.policy)
        return replace(plan_of(choice, compressed, 0.0, case.origin), importance=importance)

    def _question(self, case: _Case) -> Question:
        """What is to be chosen by, with costs as they are predicted now."""
        request, tokens, facts = case.request, case.origin.tokens, case.facts
        spent_ms = (time.perf_counter() - case.started) * 1000
        outlook = self._outlook(tokens.ids, case, spent_ms)
        return Question(request.budget, request.kv, replace(facts, outlook=outlook), case.defaults)

    def _outlook(self, ids: NDArray[np.uint32], case: _Case, spent_ms: float = 0.0) -> Outlook:
        target, draft, replica = case.origin.target, self._models.draft, case.at.replica
        salt = case.origin.tokens.salt
        if not replica:
            return self.economy.outlook(ids, target, draft, spent_ms, salt=salt)
        return self.economy.outlooks(ids, target, draft, (replica,), spent_ms, salt=salt)[replica]


def _saying(why: str, plan: Plan) -> Plan:
    """With why nothing was gone on with, where something was to be."""
    if not why:
        return plan
    return replace(plan, decision=replace(plan.decision, detail=f"{plan.decision.detail}; {why}"))


def _with_mask(scoring: Scoring, defaults: Defaults) -> Scoring:
    """Scoring that says how importance is to be seen, also where the draft draws no mask by it."""
    if not isinstance(scoring.policy, SpecKv):
        return scoring
    policy = replace(scoring.policy, mask=defaults.spec_pc)
    return replace(scoring, policy=defaults.for_draft(policy, scoring.draft.layers))


def check_vocabulary(tokens: Tokenized, target: TargetInfo) -> None:
    """Raise InvalidRequest if there is no token, or one that is not the target's."""
    if tokens.ids.size == 0:  # a normaliser may leave nothing of a text
        raise InvalidRequest("prompt", "empty", "at least one token")
    highest = int(tokens.ids.max())
    if highest >= target.model.vocabulary_size:
        raise InvalidRequest("prompt.token_ids", highest, f"< {target.model.vocabulary_size} (the vocabulary)")
