"""Planning: from a request to a plan. Tokenise, protect, go on with an earlier turn or route and draft."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from presift.core.plan import Route
from presift.core.policies import SpecKv
from presift.orchestrator import measures
from presift.orchestrator.candidates import candidates
from presift.orchestrator.cases import Case, Cases, Spend
from presift.orchestrator.choices import Choice, Defaults
from presift.orchestrator.compression import Compressor
from presift.orchestrator.coverage import Ask, coverages_of_turn, covers, settled
from presift.orchestrator.deadline import Deadline, draft_share_s
from presift.orchestrator.decision import Plan
from presift.orchestrator.drafting import Draftable, Drafter, in_time
from presift.orchestrator.economy import Economy
from presift.orchestrator.forecasting import answering_s, in_full, with_forecast
from presift.orchestrator.kv_routing import continue_kv
from presift.orchestrator.models import Models
from presift.orchestrator.plans import continued_plan, plan_of, turn_of
from presift.orchestrator.ports import TargetInfo
from presift.orchestrator.prefilling import Prefiller
from presift.orchestrator.request import Request
from presift.orchestrator.routing import avoided, check_served, choose
from presift.orchestrator.stages import stage
from presift.orchestrator.turns import Turn, Turns
from presift.orchestrator.verification import (
    DraftChanged,
    Scoring,
    keeps_what_is_protected,
)


class Planner:
    """Plans requests; remembers the turns that were answered."""

    def __init__(
        self,
        cases: Cases,
        models: Models,
        compressor: Compressor,
        economy: Economy,
        *,
        prefiller: Prefiller | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.economy = economy
        self._cases = cases
        self._models = models
        self._compressor = compressor
        self._drafter = Drafter(models, compressor, prefiller)
        self._turns = Turns(0) if turns is None else turns

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
        case = await self._cases.read(request, target, spend, waited_s)
        if held is not None:
            held.enter_context(self._cases.holding(case))
        turn = self._turn(case)
        plan = self._continued(turn, case) if isinstance(turn, Turn) else _saying(turn, await self._new(case, deadline))
        measures.tell_decision(plan.decision)
        return replace(plan, is_tighter=self._cases.is_tighter(plan, case), at=case.at)

    async def explain(self, request: Request, target: TargetInfo, spend: Spend | None = None) -> Plan:
        """The same plan with importance, always from the draft, and the routes that there were; a later turn that goes
        on with an earlier selection has neither. Here the draft's trouble is an error.
        """
        case = await self._cases.read(request, target, spend)
        turn = self._turn(case)
        plan = self._continued(turn, case) if isinstance(turn, Turn) else _saying(turn, await self._explained(case))
        return replace(plan, at=case.at)

    def remember(self, plan: Plan) -> None:
        """The target has begun to answer under this plan: a later turn may go on with its selection."""
        turn = turn_of(plan)
        if turn is not None:
            self._turns.remember(plan.read_ids, turn, plan.salt)

    def _turn(self, case: Case) -> Turn | str:
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

    def _continued(self, turn: Turn, case: Case) -> Plan:
        """The plan of a later turn."""
        request, tokens = case.request, case.origin.tokens
        facts, begun = self._cases.question(case).facts, tokens.ids[: turn.kv_plan.prompt_tokens]
        # The entry is that of the prompt which it was chosen for.
        entries = self._cases.outlook(begun, case).entries
        facts = replace(facts, outlook=replace(facts.outlook, entries=entries))
        choice = with_forecast(continue_kv(turn.kv_plan, request.budget, request.kv, facts), request.budget, facts)
        return continued_plan(choice, turn, case.origin)

    async def _new(self, case: Case, deadline: Deadline) -> Plan:
        async def drafted(choice: Choice) -> tuple[Plan, Choice]:
            return await self._drafted(choice, case, deadline)

        plan = await self._settled(case, drafted)
        self.economy.drafted(case.origin.tokens.ids, plan)
        return plan

    async def _explained(self, case: Case) -> Plan:
        async def explained(choice: Choice) -> tuple[Plan, Choice]:
            return await self._seen(choice, case), choice

        routes = tuple(candidates(self._cases.question(case)))
        return replace(await self._settled(case, explained), routes=routes)

    async def _settled(self, case: Case, ask: Ask) -> Plan:
        with stage("route"):
            question = self._cases.question(case)
            choice = choose(case.request.route, question.budget, question.options, question.facts, question.defaults)
        found = await settled(choice, ask, lambda: self._cases.question(case))
        plan = found if isinstance(found, Plan) else plan_of(found, None, 0.0, case.origin)
        plan = replace(plan, full_ttft_ms=in_full(question.facts).ttft_ms)
        return replace(plan, avoided=avoided(choice, case.request.route, question)) if question.facts.off else plan

    async def _drafted(self, choice: Choice, case: Case, deadline: Deadline) -> tuple[Plan, Choice]:
        left_s = deadline.left_s()
        limit_s = None if left_s is None else draft_share_s(left_s, answering_s(self._cases.question(case).facts))
        job = Draftable(choice, case.origin.tokens, case.facts, case.request.budget, case.defaults, limit_s, case.at)
        with self.economy.compressing(case.origin.tokens.ids, choice, case.origin.tokens.salt, case.at.replica):
            drafted = await self._drafter.draft(job)
        choice = in_time(drafted, case.request.budget, self._cases.question(case).facts)
        return plan_of(choice, drafted.compressed, drafted.prefill_ms, case.origin), choice

    async def _seen(self, choice: Choice, case: Case) -> Plan:
        scoring = self._drafter.scoring(choice, case.origin.tokens, case.defaults)
        try:
            compressed, importance = await self._compressor.explain(_with_mask(scoring, case.defaults))
        except DraftChanged:
            self._models.draft_changed()
            raise
        choice = replace(choice, policy=scoring.policy)
        return replace(plan_of(choice, compressed, 0.0, case.origin), importance=importance)


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
