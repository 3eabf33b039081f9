"""From a request's context to its plan: continue an earlier selection, or route it and ask the draft."""

from __future__ import annotations

from dataclasses import replace

from presift.core.errors import PromptTooLong
from presift.core.plan import Route
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.conversations import SelectionStore, StoredSelection
from presift.orchestrator.planning.coverage import compressed_coverages, covers, is_unknown, lowest, stored_coverages
from presift.orchestrator.planning.draft_stage import DraftResult, DraftStage, after_draft, draft_share_s
from presift.orchestrator.planning.kv_plan import drops_kv
from presift.orchestrator.planning.mask_validation import DraftChanged, keeps_protected
from presift.orchestrator.planning.plan_builder import (
    PlanNotes,
    compressed_plan,
    continued_plan,
    full_plan,
    stored_selection,
)
from presift.orchestrator.planning.request_context import RequestContext, RequestReader
from presift.orchestrator.planning.tightness import is_tighter
from presift.orchestrator.routing.auto import less_lossy
from presift.orchestrator.routing.candidates import candidates
from presift.orchestrator.routing.choice import RouteChoice
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.forecast import answer_seconds, full_forecast, with_forecast
from presift.orchestrator.routing.kv_routes import continue_kv
from presift.orchestrator.routing.router import avoided, check_served, choose
from presift.rpc.deadline import Deadline


class Planner:
    """Plans requests, and remembers the KV selections that were applied."""

    def __init__(
        self,
        reader: RequestReader,
        models: ModelRegistry,
        *,
        draft_stage: DraftStage,
        compressor: Compressor,
        estimator: CostEstimator,
        policies: PolicySource,
        selections: SelectionStore,
    ) -> None:
        self._reader = reader
        self._models = models
        self._draft_stage = draft_stage
        self._compressor = compressor
        self._estimator = estimator
        self._policies = policies
        self._selections = selections

    async def plan(self, context: RequestContext, deadline: Deadline) -> Plan:
        """The plan of a request.

        Raises InvalidRequest, PromptTooLong, BudgetExceeded or RouteUnsupported; DraftUnavailable only if the full
        prompt does not fit, or is not allowed (`strict`); DeadlineExceeded if no time is left for the draft.
        """
        stored, remark = self._stored_selection(context)
        if stored is not None:
            return self._continued(stored, context)
        choice, notes = self._routed(context, remark)
        if choice.policy is None:
            return full_plan(context, choice, notes)
        return await self._drafted(choice, context, notes, deadline)

    async def explain(self, context: RequestContext) -> Plan:
        """The same plan with importance, always from the draft, and with the candidates; a later turn that continues an
        earlier selection has neither. Trouble with the draft is an error here.
        """
        stored, remark = self._stored_selection(context)
        if stored is not None:
            return self._continued(stored, context)
        choice, notes = self._routed(context, remark)
        notes = replace(notes, routes=tuple(candidates(context.inputs)))
        while choice.policy is not None:
            defaults = context.inputs.defaults
            job = self._draft_stage.job(choice, context.tokens, context.target, defaults)
            shown = replace(job, policy=defaults.for_draft(job.policy.with_scoring(defaults.spec_pc), job.draft.layers))
            try:
                compressed, importance = await self._compressor.explain(shown)
            except DraftChanged:
                self._models.draft_changed()
                raise
            result = DraftResult(replace(choice, policy=job.policy), compressed)
            context = self._reader.refreshed(context)
            accepted, choice, remark = self._accepted(result, context)
            if accepted:
                notes = _with_remark(notes, remark)
                return compressed_plan(context, result.choice, compressed, notes, importance=importance)
        return full_plan(context, choice, notes)

    def remember(self, plan: Plan) -> None:
        """Record that the target answers under this plan, so that a later turn may continue its selection."""
        selection = stored_selection(plan)
        if selection is not None:
            self._selections.remember(plan.read_ids, selection, plan.salt)

    def _stored_selection(self, context: RequestContext) -> tuple[StoredSelection | None, str]:
        """The earlier selection to continue; or why there is none, in words, empty for a new prompt."""
        inputs, tokens, wanted = context.inputs, context.tokens, context.inputs.options.continue_prompt_tokens
        if wanted is None:
            return None, ""
        check_served(inputs)
        not_continued = f"did not continue the selection of {wanted} tokens"
        if Route.SPEC_KV in inputs.off:
            return None, f"{not_continued}: {Route.SPEC_KV} {inputs.off[Route.SPEC_KV]}"
        stored = self._selections.recall(tokens.ids[:wanted], tokens.salt)
        if stored is None:
            return None, f"no selection of the first {wanted} prompt tokens is known, so this is a new prompt"
        if not keeps_protected(stored.kv_plan, tokens.protected, inputs.prompt_tokens):
            return None, f"{not_continued}: it may have dropped tokens that are protected now"
        if not covers(stored_coverages(stored), inputs.budget):
            return None, f"{not_continued}: it is not known to cover min_coverage"
        return stored, ""

    def _continued(self, stored: StoredSelection, context: RequestContext) -> Plan:
        """The plan of a later turn."""
        # The compressed entry belongs to the prompt that it was selected for.
        begun, replica = context.tokens.ids[: stored.kv_plan.prompt_tokens], context.replica.name
        known = self._estimator.state(begun, context.target, None, salt=context.tokens.salt, replica=replica)
        inputs = replace(context.inputs, state=replace(context.inputs.state, entries=known.entries))
        choice = with_forecast(continue_kv(stored.kv_plan, inputs), inputs)
        return continued_plan(context, choice, stored, PlanNotes(is_tighter=self._is_tighter(choice, context)))

    def _routed(self, context: RequestContext, remark: str) -> tuple[RouteChoice, PlanNotes]:
        inputs = context.inputs
        with stage("route"):
            choice = choose(inputs)
        other = avoided(choice, inputs)
        notes = PlanNotes(
            remarks=(remark,) if remark else (),
            avoided=other,
            is_tighter=self._is_tighter(other or choice, context),
            full_ttft_ms=full_forecast(inputs).ttft_ms,
        )
        return choice, notes

    async def _drafted(
        self, choice: RouteChoice, context: RequestContext, notes: PlanNotes, deadline: Deadline
    ) -> Plan:
        """Asks the draft; if the result covers too little, the next less lossy route is tried."""
        while choice.policy is not None:
            result = await self._asked(choice, context, deadline)
            context = self._reader.refreshed(context)
            accepted, choice, remark = self._accepted(result, context)
            if accepted and result.compressed is not None:
                notes = _with_remark(self._retightened(notes, result.choice, context), remark)
                plan = compressed_plan(context, result.choice, result.compressed, notes, prefill_ms=result.prefill_ms)
                self._estimator.record_compressed(context.tokens.ids, plan)
                return plan
            if accepted:
                return full_plan(context, choice, notes, result.prefill_ms)
        return full_plan(context, choice, notes)

    async def _asked(self, choice: RouteChoice, context: RequestContext, deadline: Deadline) -> DraftResult:
        left_s, tokens = deadline.left_s(), context.tokens
        limit_s = None if left_s is None else draft_share_s(left_s, answer_seconds(context.inputs))
        with self._estimator.compressing(tokens.ids, choice, tokens.salt, context.replica.name):
            return await self._draft_stage.run(choice, context, limit_s)

    def _accepted(self, result: DraftResult, context: RequestContext) -> tuple[bool, RouteChoice, str]:
        """Whether the result is used, the choice to continue with, and a remark on its coverage.

        Raises BudgetExceeded (only if strict).
        """
        inputs, compressed = context.inputs, result.compressed
        if result.prefill_ms:  # the target has read the whole prompt
            inputs = replace(inputs, state=replace(inputs.state, cached_tokens=inputs.prompt_tokens))
        choice, budget = after_draft(result, inputs), inputs.budget
        if compressed is None or choice.policy is None:
            return True, choice, ""
        keeps = drops_kv(choice.policy, compressed.prompt)
        found = compressed_coverages(choice.policy, compressed, drops_kv=keeps)
        if covers(found, budget):
            return True, choice, ""
        if is_unknown(found, budget) and not budget.strict:
            return True, choice, f"the coverage is unknown, so min_coverage {budget.min_coverage:g} may not be reached"
        try:
            return False, less_lossy(choice, lowest(found), context.inputs), ""
        except PromptTooLong as error:
            return True, choice, f"covers less than min_coverage, but {error.message}"

    def _is_tighter(self, choice: RouteChoice, context: RequestContext) -> bool:
        """Whether less is kept than for callers without a budget of their own."""
        if choice.policy is None:
            return False
        inputs = context.inputs
        everyone = self._policies.table.lookup(inputs.prompt_tokens, context.target.id)
        return is_tighter(choice.policy, everyone, inputs.kv_page_tokens)

    def _retightened(self, notes: PlanNotes, choice: RouteChoice, context: RequestContext) -> PlanNotes:
        """The notes for another choice than the routed one."""
        tighter = notes.is_tighter if notes.avoided is not None else self._is_tighter(choice, context)
        return notes if tighter == notes.is_tighter else replace(notes, is_tighter=tighter)


def _with_remark(notes: PlanNotes, remark: str) -> PlanNotes:
    return replace(notes, remarks=(*notes.remarks, remark)) if remark else notes
