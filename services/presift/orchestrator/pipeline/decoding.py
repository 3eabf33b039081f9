"""One answer of a request: the target's tokens become text, and its usage is learned from."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from presift.core.answer import AnswerDelta
from presift.orchestrator.domain.ports import TargetRequest, Usage
from presift.orchestrator.domain.request import Request
from presift.orchestrator.estimation.observation import AnswerObservation
from presift.orchestrator.pipeline.events import Delta, Report, length_warnings
from presift.orchestrator.pipeline.parts import Parts
from presift.orchestrator.pipeline.request_metrics import RequestMetrics
from presift.orchestrator.planning.capabilities import sampling_of
from presift.orchestrator.planning.migration import can_migrate, remainder_of
from presift.orchestrator.prompt.detokenizer import Detokenizer
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.routing.decision import Plan
from presift.telemetry.tracing import tracer


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """Answer `number` of a request: `asked` is what its target is asked, `detokenizer` its own."""

    number: int
    plan: Plan
    request: Request
    asked: TargetRequest
    detokenizer: Detokenizer

    @classmethod
    def of(cls, number: int, plan: Plan, request: Request, tokenizer: PromptTokenizer) -> DecodedAnswer:
        sampling = sampling_of(request.sampling, number)
        asked = TargetRequest(plan.read_ids, sampling, plan.tokens.salt, plan.kv_plan, request.answer_format)
        detokenizer = Detokenizer(tokenizer.backend, sampling.stop, keeps_special=sampling.keep_special_tokens)
        return cls(number, plan, request, asked, detokenizer)

    @property
    def migrates(self) -> bool:
        """Whether another target may continue it."""
        return self.request.migrate and can_migrate(self.asked)

    def remainder(self, token_ids: Sequence[int]) -> TargetRequest | None:
        """What to ask another target after these tokens of the answer, all of which were decoded."""
        # It would not find a stop string that begins in its prompt.
        if self.detokenizer.may_be_stopping:
            return None
        return remainder_of(self.asked, token_ids)


async def decoded(
    answer: DecodedAnswer, events: AsyncGenerator[AnswerDelta | Usage, None], parts: Parts, metrics: RequestMetrics
) -> AsyncGenerator[Delta | Report, None]:
    """The target's `events` of one answer, as the caller gets them. Closing the generator closes `events`.

    Only the first answer is learned from: the others find the prompt in the target's cache. Nothing is learned from an
    answer of two targets.
    """
    plan, detokenizer = answer.plan, answer.detokenizer
    ttft_ms, token_ids, began = 0.0, list[int](), parts.estimator.now
    # Not made current: the context of an async generator is that of its consumer.
    span = tracer().start_span("decode", record_exception=False, set_status_on_exception=False)
    with span, parts.estimator.answering(plan, answer.asked.sampling.max_new_tokens) as reading:
        async with aclosing(events):
            async for event in events:
                now_ms = (time.perf_counter() - metrics.arrived) * 1000
                if not ttft_ms:  # the answer may be a stop token alone
                    ttft_ms = now_ms
                    span.add_event("first_token")
                    reading.done()
                    parts.planner.remember(plan)
                if isinstance(event, Usage):
                    metrics.record_answer(event, ttft_ms, now_ms, is_first=answer.number == 0)
                    if answer.number == 0 and not event.migrated:
                        tokens = tuple(token_ids)
                        observed = AnswerObservation(
                            plan, event, ttft_ms, now_ms, reading.was_uncontended, tokens, began
                        )
                        parts.estimator.observe(observed)
                        parts.guard.offer(plan, answer.asked.sampling, answer.request.answer_format, tokens)
                    if text := detokenizer.finish():
                        yield Delta(text, (), choice=answer.number)
                    warnings = plan.tokens.warnings + length_warnings(answer.request, event)
                    yield Report(plan.decision, event, ttft_ms, now_ms, answer.number, warnings)
                else:
                    token_ids += event.token_ids
                    yield _delta(event, detokenizer, answer.number)


def _delta(delta: AnswerDelta, detokenizer: Detokenizer, choice: int) -> Delta:
    """With the text that the target separated or, if it was not asked to, with that of the tokens."""
    ids, parsed = delta.token_ids, delta.parsed
    if parsed is None:
        return Delta(detokenizer.push(ids), ids, logprobs=delta.logprobs, choice=choice)
    return Delta(parsed.content, ids, parsed.reasoning, parsed.tool_calls, delta.logprobs, choice)
