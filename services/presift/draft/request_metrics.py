"""Metrics of the draft: stage durations, tokens, queue length."""

from __future__ import annotations

from presift.draft.work_queue import WorkQueue
from presift.telemetry.gauges import Gauge, gauge
from presift.telemetry.metrics import count, record
from presift.v1 import draft_pb2


def gauges_of(queue: WorkQueue) -> tuple[Gauge, ...]:
    """Gauges of running and waiting jobs. Loading the model counts as a running job."""
    return (
        gauge("presift.draft.running", lambda: min(1, queue.in_flight)),
        gauge("presift.draft.queue", lambda: max(0, queue.in_flight - 1)),
        gauge("presift.draft.queue.limit", lambda: queue.max_queue),
    )


def record_response(response: draft_pb2.ScoreResponse) -> None:
    """Record the stages and tokens of a scored prompt."""
    for field in response.timings.DESCRIPTOR.fields:
        stage, took_ms = field.name.removesuffix("_ms"), getattr(response.timings, field.name)
        if stage == "lookahead" and not took_ms:
            continue  # no tokens were generated
        record("presift.draft.stage.duration", took_ms / 1000, stage=stage)
    count("presift.draft.tokens", response.token_mask.prompt_tokens - response.cached_tokens, kind="read")
    count("presift.draft.tokens", response.cached_tokens, kind="cached")
    count("presift.draft.tokens", len(response.lookahead_token_ids), kind="lookahead")
