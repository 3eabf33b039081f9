"""From a request's context to its plan: continue an earlier selection, or route it and ask the draft."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import PromptTooLong
from presift.core.plan import ModelInfo, Route
from presift.core.policies import Policy
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.compressor import CompressionResult
from presift.orchestrator.planning.conversations import SelectionStore, StoredSelection
from presift.orchestrator.planning.coverage import compressed_coverages, covers, is_unknown, lowest, stored_coverages
from presift.orchestrator.planning.draft_stage import DraftStage
from presift.orchestrator.planning.mask_validation import keeps_protected
from presift.orchestrator.planning.plan_builder import (
    PlanNotes,
    compressed_plan,
    continued_plan,
    drops_kv,
    stored_selection,
    undrafted_plan,
)
from presift.orchestrator.planning.request_context import PromptReader, RequestContext
from presift.orchestrator.routing.auto import less_lossy
from presift.orchestrator.routing.candidates import candidates
from presift.orchestrator.routing.choice import RouteChoice, RoutingInputs
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.forecast import full_forecast, with_forecast
from presift.orchestrator.routing.kv_routes import continue_kv
from presift.orchestrator.routing.router import check_served, choose, switched_off_choice
from presift.rpc.deadline import NO_DEADLINE, Deadline


class Planner:
    """Plans requests, and remembers the KV selections that were applied."""

    def __init__(
        self,
        reader: PromptReader,
        *,
        draft_stage: DraftStage,
        estimator: CostEstimator,
        policies: PolicySource,
        selections: SelectionStore,
    ) -> None:
        self._reader = reader
        self._draft_stage = draft_stage
        self._estimator = estimator
        self._policies = policies
        self._selections = selections

    async def plan(self, context: RequestContext, deadline: Deadline = NO_DEADLINE, *, explains: bool = False) -> Plan:
        """The plan of a request. If the draft's result covers too little, the next less lossy route is tried.

        `explains`: with importance, always from the draft, and with the candidates; a later turn that continues an
        earlier selection has neither. The draft's errors are then raised.

        Raises InvalidRequest, PromptTooLong, BudgetExceeded or RouteUnsupported; DraftUnavailable only if the full
        prompt does not fit, or is not allowed (`strict`); DeadlineExceeded if no time is left for the draft.
        """
        stored, remark = self._stored_selection(context)
        if stored is not None:
            return self._continued(stored, context)
        routed, prefill_ms = context, 0.0
        with stage("route"):
            choice = choose(context.inputs)
        other = switched_off_choice(choice, context.inputs)
        while (policy := choice.policy) is not None and policy.needs_draft:
            if explains:
                result = await self._draft_stage.explain(choice, context)
            else:
                with self._estimator.compressing(context.tokens, choice, context.replica.name):
                    result = await self._draft_stage.run(choice, context, deadline)
            context = self._reader.refreshed(context)
            if result.compressed is None:
                choice, prefill_ms = self._draft_stage.resolve_undrafted(result, context.inputs), result.prefill_ms
                continue
            instead, coverage_remark = _less_lossy_choice(choice, policy, result.compressed, context.inputs)
            if instead is None:
                notes = self._notes(routed, choice, other, (coverage_remark, remark), explains=explains)
                plan = compressed_plan(context, result, notes)
                self._estimator.record_compressed(plan)
                return plan
            choice = instead
        notes = self._notes(routed, choice, other, (remark,), explains=explains)
        return undrafted_plan(context, choice, notes, prefill_ms)

    def remember(self, plan: Plan) -> None:
        """Record that the target answers under this plan, so that a later turn may continue its selection."""
        selection = stored_selection(plan)
        if selection is not None:
            self._selections.remember(plan.read_ids, selection, _namespace(plan.tokens.salt, plan.decision.target))

    def _stored_selection(self, context: RequestContext) -> tuple[StoredSelection | None, str]:
        """The earlier selection to continue; or why there is none, in words, empty for a new prompt."""
        inputs, tokens, wanted = context.inputs, context.tokens, context.inputs.options.continue_prompt_tokens
        if wanted is None:
            return None, ""
        check_served(inputs)
        if barred := inputs.barred(Route.SPEC_KV):
            return None, f"not continued: {Route.SPEC_KV} {barred.partition(':')[0]}"
        stored = self._selections.recall(tokens.ids[:wanted], _namespace(tokens.salt, context.target))
        if stored is None:
            return None, f"not continued: no selection of the first {wanted} prompt tokens is known"
        if not keeps_protected(stored.kv_plan, tokens.protected, inputs.prompt_tokens):
            return None, f"not continued: the selection of {wanted} tokens may lack protected ones"
        if not covers(stored_coverages(stored), inputs.budget):
            return None, f"not continued: it is not known to cover min_coverage {inputs.budget.min_coverage:g}"
        return stored, ""

    def _continued(self, stored: StoredSelection, context: RequestContext) -> Plan:
        """The plan of a later turn."""
        # The compressed entry belongs to the prompt that it was selected for.
        begun, replica = context.tokens.ids[: stored.kv_plan.prompt_tokens], context.replica.name
        entries = self._estimator.entries(begun, context.target, salt=context.tokens.salt, replica=replica)
        inputs = replace(context.inputs, state=replace(context.inputs.state, entries=entries))
        choice = with_forecast(continue_kv(stored.kv_plan, inputs), inputs)
        return continued_plan(context, choice, stored, PlanNotes(is_tighter=self._is_tighter(choice, context)))

    def _notes(
        self,
        context: RequestContext,
        choice: RouteChoice,
        other: RouteChoice | None,
        remarks: tuple[str, ...],
        *,
        explains: bool,
    ) -> PlanNotes:
        """The notes of a plan for `choice`. `context` is the one that the request was routed in; `other` is the choice
        that the quality guard prevented, and judges instead."""
        inputs = context.inputs
        return PlanNotes(
            remarks=remarks,
            switched_off_choice=other,
            is_tighter=self._is_tighter(other or choice, context),
            full_ttft_ms=full_forecast(inputs).ttft_ms,
            routes=tuple(candidates(inputs)) if explains else (),
        )

    def _is_tighter(self, choice: RouteChoice, context: RequestContext) -> bool:
        """Whether less is kept than for callers without a budget of their own."""
        if choice.policy is None:
            return False
        inputs = context.inputs
        everyone = self._policies.table.lookup(inputs.prompt_tokens, context.target.id)
        return everyone.keeps_more_than(choice.policy, inputs.kv_page_tokens)


def _less_lossy_choice(
    choice: RouteChoice, policy: Policy, compressed: CompressionResult, inputs: RoutingInputs
) -> tuple[RouteChoice | None, str]:
    """The next choice if `compressed`, made by `policy`, covers too little for the budget; else None, with a remark on
    the coverage.

    Raises BudgetExceeded (only if strict).
    """
    budget = inputs.budget
    found = compressed_coverages(policy, compressed, drops_kv=drops_kv(policy, compressed.prompt))
    if covers(found, budget):
        return None, ""
    if is_unknown(found, budget) and not budget.strict:
        return None, f"the coverage is unknown, min_coverage is {budget.min_coverage:g}"
    coverage = lowest(found)
    try:
        return less_lossy(choice, coverage, inputs), ""
    except PromptTooLong:
        covered = "an unknown coverage" if coverage is None else f"coverage {coverage:.3f}"
        return None, f"{covered} is below {budget.min_coverage:g}, but full does not fit the context"


def _namespace(salt: str, target: ModelInfo) -> str:
    """The salt of a selection: no other target continues it, which may have other layers and heads."""
    return f"{len(salt)}\n{salt}{target.id}\n{target.revision}"
