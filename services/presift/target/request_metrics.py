"""Metrics and spans of the target: stages, tokens and load.

The engine runs in other processes and reports the times of score and publish with the answer. So the spans are made
after an answer has ended: prefill, then score and publish if KV was selected, all before the first token; then decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import get_current

from presift.core.answer import Finished
from presift.core.errors import PresiftError
from presift.core.generation import EngineLoad, decode_steps
from presift.rpc.status import code_and_reason
from presift.telemetry.gauges import Gauge, gauge
from presift.telemetry.metrics import count, record
from presift.telemetry.tracing import tracer

# Name, start and end of a stage, in milliseconds since the request's arrival.
_Stage = tuple[str, float, float]


class RequestMetrics:
    """Times of one request in milliseconds. Create it when the request arrives."""

    def __init__(self) -> None:
        self._arrival, self._arrival_ns = time.perf_counter(), time.time_ns()
        # A request cancelled by its client may end in another context than it started in.
        self.context = get_current()
        self.ttft_ms: float | None = None
        self.is_admitted = False
        self.finished: Finished | None = None

    def now_ms(self) -> float:
        """Time since the arrival."""
        return (time.perf_counter() - self._arrival) * 1000

    def on_token(self) -> None:
        """Record the time of the first token. Later calls do nothing."""
        if self.ttft_ms is None:
            self.ttft_ms = self.now_ms()

    def at_ns(self, ms: float) -> int:
        """The wall-clock time, in ns, of `ms` after the arrival."""
        return self._arrival_ns + round(ms * 1e6)

    def stages(self, ended_ms: float) -> list[_Stage]:
        """The stages of the request, the last one until `ended_ms`; none if it was refused.

        With renewals, the engine reports the time of all selections together. Those before the first token are then
        part of prefill, and the others of decode.
        """
        if not self.is_admitted:
            return []
        if self.ttft_ms is None:
            return [("prefill", 0.0, ended_ms)]
        score_ms = publish_ms = 0.0
        if self.finished is not None and not self.finished.renewals:
            score_ms, publish_ms = self.finished.score_ms, self.finished.publish_ms
        scored_ms = max(0.0, self.ttft_ms - publish_ms)
        read_ms = max(0.0, scored_ms - score_ms)
        selecting = [("score", read_ms, scored_ms), ("publish", scored_ms, self.ttft_ms)] if publish_ms else []
        return [("prefill", 0.0, read_ms), *selecting, ("decode", self.ttft_ms, ended_ms)]


@contextmanager
def request_metrics(model: str) -> Iterator[RequestMetrics]:
    """Record one request of `model` when the block ends. It counts as failed unless `finished` is set."""
    measure, failure = RequestMetrics(), "CANCELLED"
    try:
        yield measure
    except PresiftError as error:
        failure = code_and_reason(error)[1]
        raise
    except Exception as error:
        failure = type(error).__name__
        raise
    finally:
        ended_ms = measure.now_ms()
        if measure.finished is None:
            _record_failure(measure, ended_ms, model, failure)
        else:
            _record_answer(measure, measure.finished, ended_ms, model)


def record_read(finished: Finished) -> None:
    """Count the prefilled and the cached tokens of a prompt."""
    # With a reused entry, the other prompt tokens were neither read nor found in the cache.
    needed = finished.kv_tokens if finished.reused_entry else finished.prompt_tokens
    count("presift.target.tokens", max(0, needed - finished.cached_tokens), kind="prefilled")
    count("presift.target.tokens", finished.cached_tokens, kind="cached")


@contextmanager
def count_refusals() -> Iterator[None]:
    """Count a PresiftError raised in the block as a refusal."""
    try:
        yield
    except PresiftError as error:
        count("presift.target.refused", reason=code_and_reason(error)[1])
        raise


def gauges_of(load: Callable[[], EngineLoad | None]) -> tuple[Gauge, ...]:
    """Gauges of the engine's load; no values while it is unknown."""

    def of(name: str) -> Callable[[], float | None]:
        return lambda: None if (now := load()) is None else getattr(now, name)

    return (
        gauge("presift.target.running", of("running")),
        gauge("presift.target.waiting", of("waiting")),
        gauge("presift.target.kv.held", of("held_kv_tokens")),
        gauge("presift.target.kv.free", of("free_kv_tokens")),
    )


def _record_answer(measure: RequestMetrics, finished: Finished, ended_ms: float, model: str) -> None:
    ttft_s, total_s = (measure.ttft_ms or 0.0) / 1000, ended_ms / 1000
    steps = decode_steps(finished.completion_tokens, finished.accepted_tokens)
    for stage, began_ms, stopped_ms in measure.stages(ended_ms):
        _span(measure, (stage, began_ms, stopped_ms))
        record("presift.target.stage.duration", (stopped_ms - began_ms) / 1000, stage=stage)
    record("gen_ai.server.request.duration", total_s, genai_operation="text_completion", model=model)
    record("gen_ai.server.time_to_first_token", ttft_s, genai_operation="text_completion", model=model)
    if steps > 0:
        each_s = (total_s - ttft_s) / steps
        record("gen_ai.server.time_per_output_token", each_s, genai_operation="text_completion", model=model)
    record_read(finished)
    count("presift.target.tokens", finished.completion_tokens, kind="generated")
    count("presift.target.lookahead.accepted", finished.accepted_tokens)
    count("presift.target.kv.renewals", finished.renewals, outcome="done")
    count("presift.target.kv.renewals", finished.renewals_skipped, outcome="skipped")


def _record_failure(measure: RequestMetrics, ended_ms: float, model: str, failure: str) -> None:
    stages = measure.stages(ended_ms)
    for number, stage in enumerate(stages, start=1):
        _span(measure, stage, failure if number == len(stages) else "")
    total_s = ended_ms / 1000
    record("gen_ai.server.request.duration", total_s, genai_operation="text_completion", model=model, error=failure)


def _span(measure: RequestMetrics, stage: _Stage, failure: str = "") -> None:
    name, began_ms, ended_ms = stage
    found = tracer().start_span(name, measure.context, start_time=measure.at_ns(began_ms))
    if failure:
        found.set_status(trace.StatusCode.ERROR, failure)
    found.end(measure.at_ns(ended_ms))
