"""Metrics and span attributes of one request: its decision, times and tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from presift.core.errors import PresiftError
from presift.core.generation import decode_steps
from presift.core.plan import Route
from presift.orchestrator.domain.ports import Usage
from presift.orchestrator.domain.request import Chat, Request
from presift.orchestrator.routing.decision import Decision, Plan
from presift.rpc.deadline import Deadline
from presift.rpc.status import code_and_reason
from presift.telemetry.metrics import count, record


class RequestMetrics:
    """Measures one request from its arrival, which is when this object is made."""

    def __init__(self, request: Request) -> None:
        self.arrived = time.perf_counter()
        self.operation = "chat" if isinstance(request.prompt, Chat) else "text_completion"
        self._called_target = self.arrived
        self._plan: Plan | None = None
        self._unanswered = request.choices

    def record_plan(self, plan: Plan) -> None:
        """The request has its plan."""
        self._plan = plan
        decision, call = plan.decision, trace.get_current_span()
        call.set_attribute("gen_ai.operation.name", self.operation)
        call.set_attribute("gen_ai.request.model", decision.target.id)
        for name in ("route", "reason", "cache"):
            call.set_attribute(f"presift.{name}", getattr(decision, name).value)
        for name in ("prompt_tokens", "kept_tokens", "kv_tokens"):
            call.set_attribute(f"presift.{name}", getattr(decision, name))
        record_decision(decision)

    def record_target_call(self) -> None:
        """The call of the target starts."""
        self._called_target = time.perf_counter()

    def record_answer(self, usage: Usage, ttft_ms: float, total_ms: float, *, is_first: bool = True) -> None:
        """An answer is complete; milliseconds since the arrival. Times are those of the first of several choices."""
        self._unanswered -= 1
        if not is_first:
            if self._plan is not None:
                record_output(self._plan.decision, self.operation, usage)
            return
        before_call_ms = (self._called_target - self.arrived) * 1000
        record("presift.orchestrator.stage.duration", max(0.0, ttft_ms - before_call_ms) / 1000, stage="first_token")
        record("presift.orchestrator.stage.duration", (total_ms - ttft_ms) / 1000, stage="decode")
        call = trace.get_current_span()
        call.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        if self._plan is not None:  # the target read presift.kept_tokens of these
            call.set_attribute("gen_ai.usage.input_tokens", self._plan.decision.prompt_tokens)
            steps = decode_steps(usage.completion_tokens, usage.accepted_tokens)
            record_times(self._plan, self.operation, (ttft_ms, total_ms, steps))
            record_usage(self._plan.decision, self.operation, usage)

    def record_end(self, failure: str) -> None:
        """The request has ended, with this error unless it was answered."""
        decision = None if self._plan is None else self._plan.decision
        took_s, route = time.perf_counter() - self.arrived, "none" if decision is None else decision.route.value
        model = "" if decision is None else decision.target.id
        words = {"genai_operation": self.operation, "model": model, "route": route}
        if not self._unanswered:
            record("gen_ai.server.request.duration", took_s, **words)
        else:
            record("gen_ai.server.request.duration", took_s, **words, error=failure)


@contextmanager
def request_metrics(request: Request, deadline: Deadline) -> Iterator[RequestMetrics]:
    """Measures a request until the block ends. gRPC cancels for a passed deadline as for a disconnect; not so here."""
    metrics, failure = RequestMetrics(request), "CANCELLED"
    try:
        yield metrics
    except PresiftError as error:
        failure = code_and_reason(error)[1]
        raise
    except (asyncio.CancelledError, GeneratorExit):
        failure = "DEADLINE_EXCEEDED" if deadline.is_due else failure
        raise
    except Exception as error:
        failure = type(error).__name__
        raise
    finally:
        metrics.record_end(failure)


def record_decision(decision: Decision) -> None:
    """Count a decision."""
    route, dropped = decision.route.value, decision.prompt_tokens - decision.kept_tokens
    count("presift.requests", route=route, reason=decision.reason.value)
    count("presift.prompt.tokens", decision.kept_tokens, route=route, fate="kept")
    count("presift.prompt.tokens", dropped, route=route, fate="dropped")
    if decision.coverage is not None and not decision.continued:
        record("presift.coverage", decision.coverage, route=route, of="mask")


def record_times(plan: Plan, operation: str, times: tuple[float, float, int]) -> None:
    """Record the times of an answer: milliseconds to its first token and to its end, and its number of decode steps."""
    (ttft_ms, total_ms, steps), decision = times, plan.decision
    words = {"genai_operation": operation, "model": decision.target.id, "route": decision.route.value}
    record("gen_ai.server.time_to_first_token", ttft_ms / 1000, **words, cache=decision.cache.value)
    if steps > 0:
        each_s = (total_ms - ttft_ms) / 1000 / steps
        record("gen_ai.server.time_per_output_token", each_s, **words)
    route = decision.route.value
    if decision.forecast is not None and decision.forecast.ttft_ms > 0:
        record("presift.forecast.ratio", ttft_ms / decision.forecast.ttft_ms, route=route)
    if plan.full_ttft_ms and decision.route is not Route.FULL:
        record("presift.forecast.against_full", ttft_ms / plan.full_ttft_ms, route=route)


def record_output(decision: Decision, operation: str, usage: Usage) -> None:
    """Record the generated tokens of an answer."""
    words = {"genai_operation": operation, "model": decision.target.id, "route": decision.route.value}
    record("gen_ai.client.token.usage", usage.completion_tokens, **words, token_type="output")


def record_usage(decision: Decision, operation: str, usage: Usage) -> None:
    """Record the tokens of an answer."""
    route, words = decision.route.value, {"genai_operation": operation, "model": decision.target.id}
    record("gen_ai.client.token.usage", decision.prompt_tokens, **words, route=route, token_type="input")
    record_output(decision, operation, usage)
    count("presift.kv.tokens", usage.kv_tokens, route=route, fate="held")
    count("presift.kv.tokens", max(0, decision.prompt_tokens - usage.kv_tokens), route=route, fate="dropped")
    if usage.reused_entry:
        count("presift.entries.reused", route=route)
    elif usage.coverage is not None:
        record("presift.coverage", usage.coverage, route=route, of="kv")
