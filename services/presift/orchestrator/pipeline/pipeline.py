"""One request, from arrival to the last token, in the order of README's diagram.

tokenize -> protect -> route -> cache? -> draft: score -> mask -> target: prefill what was kept, drop KV -> decode
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import replace
from functools import partial

from presift.core.plan import Route
from presift.orchestrator.admission.admission import Slot
from presift.orchestrator.admission.quotas import Quota
from presift.orchestrator.admission.request_cost import RequestCost, request_cost
from presift.orchestrator.backends.stream_reader import Held
from presift.orchestrator.domain.caller import TenantLimits
from presift.orchestrator.domain.ports import TargetInfo
from presift.orchestrator.domain.request import Request, TokenizedPrompt
from presift.orchestrator.estimation.perf_model import LearnedCost
from presift.orchestrator.pipeline.answer_streams import AnswerStream, side_by_side
from presift.orchestrator.pipeline.decoding import DecodedAnswer, decoded
from presift.orchestrator.pipeline.events import Delta, Event, Report, held_bytes
from presift.orchestrator.pipeline.explainer import Explainer
from presift.orchestrator.pipeline.parts import Parts
from presift.orchestrator.pipeline.request_metrics import RequestMetrics, request_metrics
from presift.orchestrator.planning.answer_length import cut_to_context
from presift.orchestrator.planning.capabilities import narrowed_to_target
from presift.orchestrator.planning.request_context import Reservation
from presift.orchestrator.routing.decision import Plan
from presift.rpc.deadline import NO_DEADLINE, Deadline


class Pipeline:
    """Runs requests: the steps of services/README.md, from admission to the last token.

    A request ends after `max_request_s`, whatever its deadline; None: only by its deadline.
    """

    def __init__(self, parts: Parts, max_request_s: float | None = None) -> None:
        self.parts = parts
        self.explainer = Explainer(parts, max_request_s)
        self._max_request_s = max_request_s

    async def generate(self, request: Request, deadline: Deadline) -> AsyncGenerator[Event, None]:
        """A Decision, then Deltas and one Report for each of the choices. Closing the generator aborts them.

        Raises what `Planner.plan` raises, the errors of the target port, DeadlineExceeded, Overloaded, also for a
        tenant over its limits, and InvalidRequest for what the target cannot do.
        """
        parts, deadline = self.parts, deadline.at_most(self._max_request_s)
        parts.calibration.stop()
        async with AsyncExitStack() as entered:
            metrics = entered.enter_context(request_metrics(request, deadline))
            first_token_sent = entered.enter_context(parts.guard.idle_gate.busy())
            request = narrowed_to_target(request, parts.models.known_target())
            cost = request_cost(request)
            quota = await entered.enter_async_context(parts.quotas.held(request.tenant, request.limits))
            await self._reserve_estimate(request, cost, quota)
            slot = await entered.enter_async_context(parts.admission.slot(request.tenant or "", cost, deadline))
            tokens, tokenize_ms = await parts.reader.read(request)
            request = self._cut_for_full(request, int(tokens.ids.size))
            await quota.reserve(tokens.ids.size, max_new_tokens=_new_tokens(request))
            reading = parts.reader.context(request, tokens, tokenize_ms, metrics.arrived)
            context, reservation = entered.enter_context(reading)
            plan = await parts.planner.plan(context, deadline)
            request = cut_to_context(request, plan.read_ids.size, context.target.context_tokens)
            metrics.record_plan(plan)
            yield plan.decision
            answers = self._answers(plan, request, deadline, metrics, _until_last_answer(slot, reservation))
            async for event in await entered.enter_async_context(aclosing(answers)):
                first_token_sent()
                if isinstance(event, Delta):
                    quota.record_generated(len(event.token_ids))
                yield event

    async def _reserve_estimate(self, request: Request, cost: RequestCost, quota: Quota) -> None:
        """A tenant over its quota is refused before it waits, and before its prompt is tokenized."""
        new_tokens = _new_tokens(self._cut_for_full(request, cost.prompt_tokens))
        await quota.reserve_estimate(cost.prompt_tokens, max_new_tokens=new_tokens, is_exact=cost.is_exact)

    def _cut_for_full(self, request: Request, prompt_tokens: int) -> Request:
        """No tokens are reserved that an answer to the whole prompt cannot have."""
        context_tokens = self.parts.models.known_target().model.context_tokens
        fits = request.route is Route.FULL and prompt_tokens < context_tokens
        return cut_to_context(request, prompt_tokens, context_tokens) if fits else request

    def _answers(
        self,
        plan: Plan,
        request: Request,
        deadline: Deadline,
        metrics: RequestMetrics,
        until_last: AbstractContextManager[None],
    ) -> AsyncGenerator[Delta | Report, None]:
        """All answers. `until_last` is entered when the target is asked, and left with the work: a caller who reads
        slowly does not keep it."""
        metrics.record_target_call()

        def stream(number: int) -> AnswerStream:
            answer = DecodedAnswer.of(number, plan, request, self.parts.tokenizer)
            remainder = answer.remainder if answer.migrates else None
            call = self.parts.target.generate(answer.asked, deadline, replica=plan.replica, remainder=remainder)
            return AnswerStream(decoded(answer, call.events(), self.parts, metrics), call.cancel)

        held = Held(partial(self.parts.answer_bytes.part, request.tenant), held_bytes)
        return side_by_side([stream(number) for number in range(request.choices)], until_last, held)

    async def read(self, request: Request) -> TokenizedPrompt:
        """The prompt's tokens, without an answer. Raises what `PromptReader.read` raises, and Overloaded as
        `tokenizing` does."""
        cost = request_cost(request)
        cost = replace(cost, tokens=max(1, cost.prompt_tokens))
        async with self.tokenizing(request.tenant, request.limits, cost):
            tokens, _ = await self.parts.reader.read(request)
            return tokens

    @asynccontextmanager
    async def tokenizing(self, tenant: str | None, limits: TenantLimits, cost: RequestCost) -> AsyncIterator[None]:
        """For work that only tokenizes: it counts against its tenant's concurrency, but costs no tokens, because
        callers count a prompt before they send it. Few run at once, and tenants take turns. Raises Overloaded."""
        parts = self.parts
        async with parts.quotas.held(tenant, limits), parts.tokenizing.slot(tenant or "", cost, NO_DEADLINE):
            yield

    def target_info(self) -> TargetInfo:
        """Raises TargetUnavailable until the target has answered once."""
        return self.parts.models.known_target()

    def stage_costs(self) -> list[LearnedCost]:
        """The learned costs of all stages."""
        return self.parts.estimator.learned()


def _new_tokens(request: Request) -> int:
    """The most tokens that all choices together may generate."""
    return request.choices * request.sampling.max_new_tokens


@contextmanager
def _until_last_answer(slot: Slot, reservation: Reservation) -> Iterator[None]:
    """Hands the replica's count over to the target's client, then holds the slot until the last answer ends.

    Released any earlier, the reservation would let a burst of requests pick the same replica.
    """
    reservation.close()
    with closing(slot):
        yield
