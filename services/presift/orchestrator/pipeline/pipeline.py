"""The recipe of one request: plan, decide, decode. Streams a Decision, then Deltas, then one Report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

from presift.core.errors import DeadlineExceeded, TargetUnavailable
from presift.orchestrator.admission.admission import Admission, Slot
from presift.orchestrator.admission.quotas import Quota, Quotas
from presift.orchestrator.admission.request_cost import request_cost
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import Target, TargetInfo, Usage
from presift.orchestrator.domain.request import Request, TokenIds
from presift.orchestrator.estimation.calibration import Calibration
from presift.orchestrator.estimation.observation import AnswerObservation
from presift.orchestrator.estimation.perf_model import StageCost
from presift.orchestrator.pipeline.request_metrics import RequestMetrics, record_decision, request_metrics
from presift.orchestrator.pipeline.stream_buffer import buffered
from presift.orchestrator.planning.explain import Detail, Explanation, explain
from presift.orchestrator.planning.kept_kv import KeptKvReader
from presift.orchestrator.planning.planner import Planner
from presift.orchestrator.planning.request_context import Spend
from presift.orchestrator.prompt.detokenizer import Detokenizer
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.quality.guard import QualityGuard
from presift.orchestrator.quality.sampler import Sample
from presift.orchestrator.routing.decision import Decision, Plan
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.telemetry.tracing import tracer


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new: `text` may be empty while a character or a stop string is incomplete."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a stream: the decision it was answered under, the target's usage, and milliseconds since arrival."""

    decision: Decision
    usage: Usage
    ttft_ms: float
    total_ms: float


Event = Decision | Delta | Report


class Pipeline:
    """One request, one way through."""

    def __init__(
        self,
        planner: Planner,
        tokenizer: PromptTokenizer,
        models: ModelRegistry,
        target: Target,
        *,
        guard: QualityGuard | None = None,
        calibration: Calibration | None = None,
        allowances: Quotas | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._planner = planner
        self._tokenizer = tokenizer
        self._models = models
        self._target = target
        self.guard = QualityGuard() if guard is None else guard
        self._kept_kv = KeptKvReader(target)
        self._calibration = calibration
        self._allowances = Quotas() if allowances is None else allowances
        self.admission = Admission() if admission is None else admission

    async def generate(self, request: Request, deadline: Deadline) -> AsyncGenerator[Event, None]:
        """`deadline` is the caller's. Closing the iterator aborts the target's request.

        Raises what `plan` raises, what the target port raises, DeadlineExceeded, and Overloaded, for a tenant over its
        limits too.
        """
        with request_metrics(request, deadline) as measure:
            async with (
                self._allowances.held(request.tenant, request.limits) as allowance,
                aclosing(self._answer(request, deadline, allowance, measure)) as events,
            ):
                async for event in events:
                    if isinstance(event, Delta):
                        allowance.record_generated(len(event.token_ids))
                    yield event

    async def _answer(
        self, request: Request, deadline: Deadline, allowance: Quota, measure: RequestMetrics
    ) -> AsyncGenerator[Event, None]:
        with self.guard.calm.stirred() as calmed, ExitStack() as held:
            async with self._place(request, deadline) as place:
                spend = partial(allowance.charge, max_new_tokens=request.sampling.max_new_tokens)
                plan = await self.plan(request, deadline.left_s(), place.waited_s, spend=spend, held=held)
                measure.decided(plan)
                yield plan.decision
                sample = self.guard.sample(plan, request.sampling)
                held.close()  # from now on the request itself counts
                answer = self._decode(plan, request, deadline.left_s(), measure, place)
                async with aclosing(buffered(answer, joined)) as events:
                    async for event in events:
                        calmed()
                        self._hear(sample, event)
                        yield event

    async def plan(
        self,
        request: Request,
        time_left_s: float | None = None,
        waited_s: float = 0.0,
        *,
        spend: Spend | None = None,
        held: ExitStack | None = None,
    ) -> Plan:
        """The decision and what it keeps, without generating. `waited_s` since the request's arrival; `held` holds the
        target's seat. Raises TargetUnavailable before the target is known."""
        self._caller_is_here()
        plan = await self._planner.plan(request, self.target_info(), time_left_s, waited_s, spend=spend, held=held)
        record_decision(plan.decision)
        return plan

    async def explain(self, request: Request, detail: Detail, deadline: Deadline = NO_DEADLINE) -> Explanation:
        """The decision and the fate of every prompt token. Asks the draft, so its trouble is an error here."""
        try:
            async with (
                self._allowances.held(request.tenant, request.limits) as allowance,
                self._place(request, deadline),
                asyncio.timeout(deadline.left_s()),
            ):
                return await self._explained(request, detail, deadline, allowance)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed") from None

    def _place(self, request: Request, deadline: Deadline) -> AbstractAsyncContextManager[Slot]:
        return self.admission.slot(request.tenant or "", request_cost(request), deadline)

    async def _explained(self, request: Request, detail: Detail, deadline: Deadline, allowance: Quota) -> Explanation:
        self._caller_is_here()
        spend = partial(allowance.charge, max_new_tokens=0)
        with self.guard.calm.stirred():
            plan = await self._planner.explain(request, self.target_info(), spend)
            kept_kv = await self._kept_kv.read(plan, deadline.left_s()) if detail.kv_mask else None
        prompt, text, offsets = request.prompt, "", None
        if not isinstance(prompt, TokenIds):
            text, offsets = await asyncio.to_thread(self._tokenizer.located, prompt)
        # A span of every token takes a quarter of a second at 50,000: others stream meanwhile.
        spans = await asyncio.to_thread(explain, plan, offsets, kept_kv, span_per_token=detail.span_per_token)
        return Explanation(plan.decision, spans, text, kept_kv, plan.routes)

    def learnt_speeds(self) -> list[StageCost]:
        """What was learnt of the stages."""
        return self._planner.economy.learnt()

    def target_info(self) -> TargetInfo:
        """Raises TargetUnavailable before the target has answered once."""
        if self._models.target is None:
            raise TargetUnavailable("the target has not answered yet")
        return self._models.target

    def _hear(self, sample: Sample | None, event: Delta | Report) -> None:
        if sample is None:
            return
        if isinstance(event, Delta):
            sample.hear(event.token_ids)
        else:
            self.guard.offer(sample)

    def _caller_is_here(self) -> None:
        if self._calibration is not None:
            self._calibration.stop()

    async def _decode(
        self, plan: Plan, request: Request, left_s: float | None, measure: RequestMetrics, place: Slot
    ) -> AsyncGenerator[Delta | Report, None]:
        detokenizer = Detokenizer(self._tokenizer.backend, request.sampling.stop)
        economy, ttft_ms, answer = self._planner.economy, 0.0, list[int]()
        began = economy.now
        # Not made current: an async generator's context is its consumer's.
        span = tracer().start_span("decode", record_exception=False, set_status_on_exception=False)
        decoding_ms = step_ms(plan) * request.sampling.max_new_tokens
        held = economy.loads.answering(decoding_ms, plan.decision.kv_tokens, plan.at.replica)
        queue = economy.reading_at(plan.at.replica)
        # The place is that of the work: a caller who reads slowly does not keep it.
        with closing(place), span, held, queue.working(work_ms(plan)) as turn:
            measure.asked_target()
            stream = self._target.generate(plan.read_ids, request.sampling, plan.salt, left_s, plan.kv_plan, at=plan.at)
            async with aclosing(stream) as events:
                async for event in events:
                    now_ms = (time.perf_counter() - measure.arrived) * 1000
                    if not ttft_ms:  # an answer may be a stop token alone
                        ttft_ms = now_ms
                        span.add_event("first_token")
                        queue.done(turn)
                        self._planner.remember(plan)
                    if isinstance(event, Usage):
                        measure.answered(event, ttft_ms, now_ms)
                        economy.observe(
                            AnswerObservation(plan, event, ttft_ms, now_ms, turn.was_alone, tuple(answer), began)
                        )
                        yield Delta(detokenizer.finish(), ())
                        yield Report(plan.decision, event, ttft_ms, now_ms)
                    else:
                        answer += event
                        yield Delta(detokenizer.push(event), event)


def joined(events: Sequence[Delta | Report]) -> Iterator[Delta | Report]:
    """The same answer in at most two events: what came so far, and its end."""
    deltas = [event for event in events if isinstance(event, Delta)]
    if deltas:
        text, token_ids = "".join(each.text for each in deltas), chain.from_iterable(each.token_ids for each in deltas)
        yield Delta(text, tuple(token_ids))
    yield from (event for event in events if isinstance(event, Report))


def work_ms(plan: Plan) -> float:
    """What the target is predicted to do up to the first token, once it is this request's turn."""
    return 0.0 if plan.decision.forecast is None else plan.decision.forecast.target_work_ms


def step_ms(plan: Plan) -> float:
    """What a decode step is predicted to take."""
    return 0.0 if plan.decision.forecast is None else plan.decision.forecast.step_ms
