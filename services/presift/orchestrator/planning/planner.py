"""Planning: from a request to a plan. Tokenise, protect, go on with an earlier turn or route and draft."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from presift.core.plan import Route
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import TargetInfo
from presift.orchestrator.domain.request import Request
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.conversations import SelectionStore, StoredSelection
from presift.orchestrator.planning.coverage import Ask, coverages_of_turn, covers, resolve
from presift.orchestrator.planning.draft_stage import DraftJob, DraftStage, draft_share_s, in_time
from presift.orchestrator.planning.mask_validation import DraftChanged, ScoringJob, keeps_what_is_protected
from presift.orchestrator.planning.plan_builder import continued_plan, plan_of, turn_of
from presift.orchestrator.planning.prefill import Prefiller
from presift.orchestrator.planning.request_context import RequestContext, RequestReader, Spend
from presift.orchestrator.routing.candidates import candidates
from presift.orchestrator.routing.choice import Defaults, RouteChoice
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.forecast import answering_s, in_full, with_forecast
from presift.orchestrator.routing.kv_routes import continue_kv
from presift.orchestrator.routing.router import avoided, check_served, choose
from presift.rpc.deadline import Deadline


class Planner:
    """Plans requests; remembers the turns that were answered."""

    def __init__(
        self,
        cases: RequestReader,
        models: ModelRegistry,
        compressor: Compressor,
        economy: CostEstimator,
        *,
        prefiller: Prefiller | None = None,
        turns: SelectionStore | None = None,
    ) -> None:
        self.economy = economy
        self._cases = cases
        self._models = models
        self._compressor = compressor
        self._drafter = DraftStage(models, compressor, prefiller)
        self._turns = SelectionStore(0) if turns is None else turns

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
        plan = (
            self._continued(turn, case)
            if isinstance(turn, StoredSelection)
            else _saying(turn, await self._new(case, deadline))
        )
        return replace(plan, is_tighter=self._cases.is_tighter(plan, case), at=case.at)

    async def explain(self, request: Request, target: TargetInfo, spend: Spend | None = None) -> Plan:
        """The same plan with importance, always from the draft, and the routes that there were; a later turn that goes
        on with an earlier selection has neither. Here the draft's trouble is an error.
        """
        case = await self._cases.read(request, target, spend)
        turn = self._turn(case)
        plan = (
            self._continued(turn, case)
            if isinstance(turn, StoredSelection)
            else _saying(turn, await self._explained(case))
        )
        return replace(plan, at=case.at)

    def remember(self, plan: Plan) -> None:
        """The target has begun to answer under this plan: a later turn may go on with its selection."""
        turn = turn_of(plan)
        if turn is not None:
            self._turns.remember(plan.read_ids, turn, plan.salt)

    def _turn(self, case: RequestContext) -> StoredSelection | str:
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

    def _continued(self, turn: StoredSelection, case: RequestContext) -> Plan:
        """The plan of a later turn."""
        request, tokens = case.request, case.origin.tokens
        facts, begun = self._cases.question(case).facts, tokens.ids[: turn.kv_plan.prompt_tokens]
        # The entry is that of the prompt which it was chosen for.
        entries = self._cases.outlook(begun, case).entries
        facts = replace(facts, outlook=replace(facts.outlook, entries=entries))
        choice = with_forecast(continue_kv(turn.kv_plan, request.budget, request.kv, facts), request.budget, facts)
        return continued_plan(choice, turn, case.origin)

    async def _new(self, case: RequestContext, deadline: Deadline) -> Plan:
        async def drafted(choice: RouteChoice) -> tuple[Plan, RouteChoice]:
            return await self._drafted(choice, case, deadline)

        plan = await self._settled(case, drafted)
        self.economy.drafted(case.origin.tokens.ids, plan)
        return plan

    async def _explained(self, case: RequestContext) -> Plan:
        async def explained(choice: RouteChoice) -> tuple[Plan, RouteChoice]:
            return await self._seen(choice, case), choice

        routes = tuple(candidates(self._cases.question(case)))
        return replace(await self._settled(case, explained), routes=routes)

    async def _settled(self, case: RequestContext, ask: Ask) -> Plan:
        with stage("route"):
            question = self._cases.question(case)
            choice = choose(case.request.route, question.budget, question.options, question.facts, question.defaults)
        found = await resolve(choice, ask, lambda: self._cases.question(case))
        plan = found if isinstance(found, Plan) else plan_of(found, None, 0.0, case.origin)
        plan = replace(plan, full_ttft_ms=in_full(question.facts).ttft_ms)
        return replace(plan, avoided=avoided(choice, case.request.route, question)) if question.facts.off else plan

    async def _drafted(self, choice: RouteChoice, case: RequestContext, deadline: Deadline) -> tuple[Plan, RouteChoice]:
        left_s = deadline.left_s()
        limit_s = None if left_s is None else draft_share_s(left_s, answering_s(self._cases.question(case).facts))
        job = DraftJob(choice, case.origin.tokens, case.facts, case.request.budget, case.defaults, limit_s, case.at)
        with self.economy.compressing(case.origin.tokens.ids, choice, case.origin.tokens.salt, case.at.replica):
            drafted = await self._drafter.draft(job)
        choice = in_time(drafted, case.request.budget, self._cases.question(case).facts)
        return plan_of(choice, drafted.compressed, drafted.prefill_ms, case.origin), choice

    async def _seen(self, choice: RouteChoice, case: RequestContext) -> Plan:
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


def _with_mask(scoring: ScoringJob, defaults: Defaults) -> ScoringJob:
    """ScoringJob that says how importance is to be seen, also where the draft draws no mask by it."""
    policy = scoring.policy.with_scoring(defaults.spec_pc)
    return replace(scoring, policy=defaults.for_draft(policy, scoring.draft.layers))
