"""TargetService over gRPC: a request is checked, admitted, generated and streamed. Errors are `core`'s; see
rpc/interceptor.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import grpc

from presift.core.errors import TargetUnavailable
from presift.core.limits import check_limits
from presift.rpc import metrics, wire
from presift.rpc.telemetry import span
from presift.target.admission import Admission, check_fits
from presift.target.engine import Engine, Finished, FinishReason, GenerateRequest, Sampling, Tokens
from presift.target.limits import GENERATE, PREFILL
from presift.target.load_meter import LoadMeter
from presift.v1 import target_pb2, target_pb2_grpc

_REASONS = {
    FinishReason.STOP: target_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: target_pb2.FINISH_REASON_LENGTH,
}


class TargetServicer(target_pb2_grpc.TargetServiceServicer):
    """Refuses calls as UNAVAILABLE until it is given an engine, so that it can be listened on while the model loads."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        # Behind one address there may be several of us: speeds and prefixes are not to be mixed.
        self._replica = uuid.uuid4().hex
        self._meter = LoadMeter()
        self._engine: Engine | None = None

    def use(self, engine: Engine) -> None:
        """Answer with `engine`, which is started, from now on."""
        self._engine = engine

    async def Generate(
        self, request: target_pb2.TargetServiceGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[target_pb2.TargetServiceGenerateResponse]:
        engine, clock = self._ready(), _Clock()
        parsed = request_from_wire(request)
        check_fits(parsed, engine.info)
        finished = False
        with self._admission.admit(), span("decode"):
            try:
                # Without aclosing, a cancelled call would leave the abort to the garbage collector.
                async with aclosing(engine.generate(parsed)) as events:
                    async for event in events:
                        finished = isinstance(event, Finished)
                        yield self._response(event, clock, engine)
            finally:
                if not finished:
                    metrics.count("presift.target.aborted")

    async def Prefill(
        self, request: target_pb2.PrefillRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> target_pb2.PrefillResponse:
        engine, clock = self._ready(), _Clock()
        check_limits(request, PREFILL)
        # One token is the least that an engine generates; it is not read again.
        sampling = Sampling(max_new_tokens=1, ignore_eos=True)
        parsed = GenerateRequest(wire.token_ids_from_wire(request.token_ids), sampling, request.cache_salt)
        check_fits(parsed, engine.info)
        with self._admission.admit(), span("prefill"):
            async with aclosing(engine.generate(parsed)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        return target_pb2.PrefillResponse(cached_tokens=event.cached_tokens, total_ms=clock.now_ms())
        raise TargetUnavailable("the engine ended the prefill early")

    async def GetInfo(
        self, request: target_pb2.TargetServiceGetInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> target_pb2.TargetServiceGetInfoResponse:
        engine = self._ready()
        return target_pb2.TargetServiceGetInfoResponse(
            model=wire.model_to_wire(engine.info.model),
            engine=engine.info.name,
            supported_routes=[wire.route_to_wire(route) for route in engine.info.routes],
            running_requests=engine.running_requests,
            unsupported_routes=[
                target_pb2.UnsupportedRoute(route=wire.route_to_wire(route), reason=reason)
                for route, reason in engine.info.unsupported.items()
            ],
            kv_page_tokens=engine.info.kv_page_tokens,
            kv_pool_tokens=engine.info.kv_pool_tokens,
            replica=self._replica,
            load=self._load(engine),
        )

    def _load(self, engine: Engine) -> target_pb2.TargetLoad | None:
        load = self._meter.of(engine)
        return None if load is None else target_pb2.TargetLoad(**asdict(load))

    def _response(
        self, event: Tokens | Finished, clock: _Clock, engine: Engine
    ) -> target_pb2.TargetServiceGenerateResponse:
        clock.first_token()
        if isinstance(event, Tokens):
            delta = target_pb2.TokenDelta(token_ids=event.token_ids)
            return target_pb2.TargetServiceGenerateResponse(delta=delta)
        usage = _usage(event, clock, self._replica, self._load(engine))
        _record(usage)
        return target_pb2.TargetServiceGenerateResponse(usage=usage)

    def _ready(self) -> Engine:
        if self._engine is None:
            raise TargetUnavailable("the target is loading its model")
        return self._engine


class _Clock:
    """Times of one request, in ms since its arrival."""

    def __init__(self) -> None:
        self._arrival = time.perf_counter()
        self.ttft_ms: float | None = None

    def now_ms(self) -> float:
        return (time.perf_counter() - self._arrival) * 1000

    def first_token(self) -> None:
        if self.ttft_ms is None:
            self.ttft_ms = self.now_ms()


def request_from_wire(request: target_pb2.TargetServiceGenerateRequest) -> GenerateRequest:
    """The request with unset fields at their defaults. Raises InvalidRequest."""
    check_limits(request, GENERATE)
    sent, values = request.sampling, {}
    for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed"):
        if sent.HasField(name):
            values[name] = getattr(sent, name)
    sampling = Sampling(
        **values,
        stop=tuple(sent.stop),
        stop_token_ids=tuple(sent.stop_token_ids),
        ignore_eos=sent.ignore_eos,
    )
    plan = wire.kv_plan_from_wire(request.kv_plan) if request.HasField("kv_plan") else None
    return GenerateRequest(wire.token_ids_from_wire(request.token_ids), sampling, request.cache_salt, plan)


def _usage(event: Finished, clock: _Clock, replica: str, load: target_pb2.TargetLoad | None) -> target_pb2.TargetUsage:
    return target_pb2.TargetUsage(
        prompt_tokens=event.prompt_tokens,
        kv_tokens=event.kv_tokens,
        cached_tokens=event.cached_tokens,
        completion_tokens=event.completion_tokens,
        finish_reason=_REASONS[event.reason],
        # An answer that is nothing but a stop token has no delta; its first token came with its end.
        ttft_ms=clock.ttft_ms or 0.0,
        total_ms=clock.now_ms(),
        reused_entry=event.reused_entry,
        score_ms=event.score_ms,
        publish_ms=event.publish_ms,
        coverage=event.coverage,
        kv_mask=None if event.kv_mask is None else wire.kv_mask_to_wire(event.kv_mask),
        load=load,
        replica=replica,
    )


def _record(usage: target_pb2.TargetUsage) -> None:
    metrics.record("presift.target.ttft", usage.ttft_ms)
    for kind in ("prompt", "cached", "completion"):
        metrics.count("presift.target.tokens", getattr(usage, f"{kind}_tokens"), kind=kind)
