"""DraftService over gRPC: checks a request, queues it, scores it and answers.

Raises `core`'s errors; an interceptor of `presift.rpc` maps them to status codes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from presift.core.errors import DraftUnavailable, PresiftError
from presift.core.plan import ModelInfo, Route
from presift.draft import request_metrics
from presift.draft.compress import CompressionResult, compress
from presift.draft.request import SUPPORTED_ROUTES, RequestLimits, parse
from presift.draft.scorer import Scorer
from presift.draft.work_queue import JobResult, WorkQueue
from presift.rpc import codec
from presift.rpc.deadline import Deadline
from presift.rpc.large_input import in_thread_if_large, received_bytes
from presift.rpc.status import code_and_reason
from presift.telemetry import metrics
from presift.telemetry.tracing import span
from presift.v1 import draft_pb2, draft_pb2_grpc


class DraftServicer(draft_pb2_grpc.DraftServiceServicer):
    """Refuses calls as UNAVAILABLE until `use` is called, so that the server can listen while the model loads."""

    def __init__(self, queue: WorkQueue, max_lookahead_tokens: int) -> None:
        self._queue = queue
        self._max_lookahead_tokens = max_lookahead_tokens
        self._scorer: Scorer | None = None

    def use(self, scorer: Scorer) -> None:
        """Serve calls with `scorer`."""
        self._scorer = scorer

    async def Score(
        self, request: draft_pb2.ScoreRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> draft_pb2.ScoreResponse:
        deadline = Deadline.within(context.time_remaining())
        try:
            scorer = self._ready()
            with span("score"):
                limits = RequestLimits(scorer.info, self._max_lookahead_tokens)
                parsed = await in_thread_if_large(received_bytes.get(), lambda: parse(request, limits))
                tokens = int(parsed.token_ids.size)
                job = await self._queue.run(
                    partial(compress, scorer, parsed), deadline, tenant=parsed.salt, work_tokens=tokens
                )
        except PresiftError as error:
            metrics.count("presift.draft.refused", reason=code_and_reason(error)[1])
            raise
        response = _response(job, scorer, request.include_importance)
        request_metrics.record_response(response)
        return response

    async def GetInfo(
        self, request: draft_pb2.DraftServiceGetInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> draft_pb2.DraftServiceGetInfoResponse:
        return draft_pb2.DraftServiceGetInfoResponse(
            model=codec.model_to_wire(self._ready().info),
            max_queue=self._queue.max_queue,
            supported_routes=[codec.route_to_wire(route) for route in _routes(self._ready().info)],
        )

    def _ready(self) -> Scorer:
        if self._scorer is None:
            raise DraftUnavailable("the draft is loading its model")
        return self._scorer


def _response(job: JobResult[CompressionResult], scorer: Scorer, include_importance: bool) -> draft_pb2.ScoreResponse:
    compressed, scored = job.result, job.result.scored
    return draft_pb2.ScoreResponse(
        token_mask=codec.token_mask_to_wire(compressed.mask),
        kv_mask=codec.kv_mask_to_wire(compressed.kv_mask) if compressed.kv_mask is not None else None,
        lookahead_token_ids=scored.lookahead_token_ids,
        coverage=compressed.coverage,
        importance=_values(scored.importance) if include_importance else (),
        mass=_values(scored.coverage_importance) if include_importance else (),
        model=codec.model_to_wire(scorer.info),
        timings=draft_pb2.ScoreTimings(
            queue_ms=job.queue_ms,
            prefill_ms=scored.timings.prefill_ms,
            lookahead_ms=scored.timings.lookahead_ms,
            select_ms=compressed.select_ms,
        ),
        kv_capacity=compressed.kv_capacity,
        kv_coverage=compressed.kv_coverage,
        cached_tokens=scored.cached_tokens,
    )


def _routes(model: ModelInfo) -> tuple[Route, ...]:
    """The routes whose policies this model can score. The second stage of spec_kv_pc always reads a lookahead."""
    return tuple(route for route in SUPPORTED_ROUTES if model.can_look_ahead or route is not Route.SPEC_KV_PC)


def _values(found: NDArray[np.float32] | None) -> list[float]:
    return [] if found is None else found.tolist()
