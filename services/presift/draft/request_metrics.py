"""What the draft tells of its work, as metrics: how long stages took, how much was read, how many wait."""

from __future__ import annotations

from presift.draft.work_queue import WorkQueue
from presift.telemetry.gauges import Gauge, gauge
from presift.telemetry.metrics import count, record
from presift.v1 import draft_pb2


def gauges_of(queue: WorkQueue) -> tuple[Gauge, ...]:
    """How many prompts are scored and wait. While the model loads, that is what is worked at."""
    return (
        gauge("presift.draft.running", lambda: min(1, queue.places_taken)),
        gauge("presift.draft.queue", lambda: max(0, queue.places_taken - 1)),
        gauge("presift.draft.queue.limit", lambda: queue.max_queue),
    )


def tell(reply: draft_pb2.ScoreResponse) -> None:
    """A prompt was scored."""
    for field in reply.timings.DESCRIPTOR.fields:
        stage, took_ms = field.name.removesuffix("_ms"), getattr(reply.timings, field.name)
        if stage == "lookahead" and not took_ms:
            continue  # there was none
        record("presift.draft.stage.duration", took_ms / 1000, stage=stage)
    count("presift.draft.tokens", reply.token_mask.prompt_tokens, kind="read")
    count("presift.draft.tokens", len(reply.lookahead_token_ids), kind="lookahead")
