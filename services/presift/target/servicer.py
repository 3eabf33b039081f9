"""TargetService over gRPC: checks, admits, generates and streams. Raises `core`'s errors; an interceptor maps them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

import grpc

from presift.core.answer import AnswerDelta, Finished
from presift.core.errors import TargetUnavailable
from presift.core.generation import Sampling
from presift.core.limits import check_limits
from presift.rpc import answer_codec, codec
from presift.rpc.large_input import in_thread_if_large, received_bytes
from presift.target.admission import Admission, check_fits
from presift.target.engine import Engine, Event, GenerateRequest
from presift.target.limits import GENERATE, PREFILL
from presift.target.load_meter import LoadMeter
from presift.target.request_metrics import RequestMetrics, count_refusals, gauges_of, record_read, request_metrics
from presift.telemetry import metrics
from presift.telemetry.gauges import Gauge
from presift.telemetry.tracing import span
from presift.v1 import target_pb2, target_pb2_grpc

M = TypeVar("M", target_pb2.TargetServiceGenerateRequest, target_pb2.PrefillRequest)


class TargetServicer(target_pb2_grpc.TargetServiceServicer):
    """Refuses calls as UNAVAILABLE until `use` is called, so that the server can listen while the model loads."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        # One address may have several replicas. The id lets callers keep their speeds and prefixes apart.
        self._replica = uuid.uuid4().hex
        self._meter = LoadMeter()
        self._engine: Engine | None = None

    def use(self, engine: Engine) -> None:
        """Serve calls with `engine`, which is started."""
        self._admission.use(engine.info)
        self._engine = engine

    async def Generate(
        self, request: target_pb2.TargetServiceGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[target_pb2.TargetServiceGenerateResponse]:
        engine = self._ready()
        with ExitStack() as held, request_metrics(engine.info.model.id) as measure:
            with count_refusals():
                parsed = await _checked(request, request_from_wire, engine)
                held.enter_context(self._admission.admit())
            measure.is_admitted = True
            try:
                # Without aclosing, a cancelled call would leave the abort to the garbage collector.
                async with aclosing(engine.generate(parsed)) as events:
                    async for event in events:
                        yield await self._response(event, measure, engine)
            finally:
                if measure.finished is None:
                    metrics.count("presift.target.aborted")

    async def Prefill(
        self, request: target_pb2.PrefillRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> target_pb2.PrefillResponse:
        engine, measure = self._ready(), RequestMetrics()
        with ExitStack() as held:
            with count_refusals():
                parsed = await _checked(request, prefill_from_wire, engine)
                held.enter_context(self._admission.admit())
            with span("prefill"):
                async with aclosing(engine.generate(parsed)) as events:
                    async for event in events:
                        if isinstance(event, Finished):
                            record_read(event)
                            cached, total_ms = event.cached_tokens, measure.now_ms()
                            return target_pb2.PrefillResponse(cached_tokens=cached, total_ms=total_ms)
        raise TargetUnavailable("the engine ended the prefill without a result")

    async def GetInfo(
        self, request: target_pb2.TargetServiceGetInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> target_pb2.TargetServiceGetInfoResponse:
        engine = self._ready()
        return target_pb2.TargetServiceGetInfoResponse(
            model=codec.model_to_wire(engine.info.model),
            engine=engine.info.name,
            supported_routes=[codec.route_to_wire(route) for route in engine.info.routes],
            running_requests=engine.running_requests,
            unsupported_routes=[
                target_pb2.UnsupportedRoute(route=codec.route_to_wire(route), reason=reason)
                for route, reason in engine.info.unsupported.items()
            ],
            kv_page_tokens=engine.info.kv_page_tokens,
            kv_pool_tokens=engine.info.kv_pool_tokens,
            replica=self._replica,
            load=self._load(engine),
            tool_call_parser=engine.info.tool_call_parser,
            reasoning_parser=engine.info.reasoning_parser,
            grammars=engine.info.grammars,
        )

    def gauges(self) -> tuple[Gauge, ...]:
        """Gauges of the engine's load."""
        return gauges_of(lambda: None if self._engine is None else self._meter.read(self._engine))

    def _load(self, engine: Engine) -> target_pb2.TargetLoad | None:
        load = self._meter.read(engine)
        if load is None:
            return None
        return target_pb2.TargetLoad(running=load.running, waiting=load.waiting, free_kv_tokens=load.free_kv_tokens)

    async def _response(
        self, event: Event, measure: RequestMetrics, engine: Engine
    ) -> target_pb2.TargetServiceGenerateResponse:
        measure.on_token()
        if isinstance(event, AnswerDelta):
            return target_pb2.TargetServiceGenerateResponse(delta=answer_codec.delta_to_wire(event))
        measure.finished = event
        load, mask = self._load(engine), event.kv_mask
        size = answer_codec.LOGPROB_BYTES * len(event.prompt_logprobs) + (0 if mask is None else mask.kept.size // 8)
        usage = await in_thread_if_large(size, lambda: _usage(event, measure, self._replica, load))
        return target_pb2.TargetServiceGenerateResponse(usage=usage)

    def _ready(self) -> Engine:
        if self._engine is None:
            raise TargetUnavailable("the target is loading its model")
        return self._engine


async def _checked(request: M, from_wire: Callable[[M], GenerateRequest], engine: Engine) -> GenerateRequest:
    """The request, which fits the engine. Raises what `from_wire` and `check_fits` raise."""

    def read() -> GenerateRequest:
        parsed = from_wire(request)
        check_fits(parsed, engine.info)
        return parsed

    return await in_thread_if_large(received_bytes.get(), read)


def request_from_wire(request: target_pb2.TargetServiceGenerateRequest) -> GenerateRequest:
    """The request with defaults for unset fields. Raises InvalidRequest."""
    check_limits(request, GENERATE)
    plan = codec.kv_plan_from_wire(request.kv_plan) if request.HasField("kv_plan") else None
    wanted = answer_codec.format_from_wire(request.format) if request.HasField("format") else None
    sampling = answer_codec.sampling_from_wire(request.sampling)
    return GenerateRequest(codec.token_ids_from_wire(request.token_ids), sampling, request.cache_salt, plan, wanted)


def prefill_from_wire(request: target_pb2.PrefillRequest) -> GenerateRequest:
    """A request that reads the prompt into the cache. Raises InvalidRequest."""
    check_limits(request, PREFILL)
    # An engine generates at least one token.
    sampling = Sampling(max_new_tokens=1, ignore_eos=True)
    return GenerateRequest(codec.token_ids_from_wire(request.token_ids), sampling, request.cache_salt)


def _usage(
    event: Finished, measure: RequestMetrics, replica: str, load: target_pb2.TargetLoad | None
) -> target_pb2.TargetUsage:
    return target_pb2.TargetUsage(
        prompt_tokens=event.prompt_tokens,
        # An answer of only a stop token has no delta: its first token is its end.
        ttft_ms=measure.ttft_ms or 0.0,
        total_ms=measure.now_ms(),
        kv_mask=None if event.kv_mask is None else codec.kv_mask_to_wire(event.kv_mask),
        load=load,
        replica=replica,
        **answer_codec.finished_to_wire(event),
    )
