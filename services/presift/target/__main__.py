"""Runs the target service: `python -m presift.target --model DIR --listen HOST:PORT`."""

from __future__ import annotations

import asyncio
import logging
import sys

import numpy as np

from presift.core.errors import PresiftError
from presift.core.generation import Sampling
from presift.core.plan import Route
from presift.models.folder import resolve
from presift.rpc.server.run import freeze_loaded_objects, run
from presift.rpc.server.server import GrpcServer
from presift.target.admission import Admission
from presift.target.engine import Engine, GenerateRequest
from presift.target.servicer import TargetServicer
from presift.target.settings import TargetSettings
from presift.target.sglang import processes
from presift.target.sglang.arguments import SglangOptions
from presift.target.sglang.engine import SglangEngine
from presift.telemetry.gauges import observed
from presift.v1 import target_pb2, target_pb2_grpc

_SERVICE = target_pb2.DESCRIPTOR.services_by_name["TargetService"].full_name

log = logging.getLogger(__name__)


def main() -> int:
    """Exit status: 0 after a clean drain, 1 if the engine did not start or failed."""
    return run("target", TargetSettings(), serve)  # type: ignore[call-arg]


async def serve(settings: TargetSettings) -> bool:
    """Serve until SIGTERM or SIGINT. False if the engine failed.

    Raises PresiftError if the model does not exist or the address cannot be used.
    """
    engine = SglangEngine(engine_options(settings))
    max_running = None if settings.max_running is None else settings.max_running * settings.data_parallel
    servicer = TargetServicer(Admission(max_running, settings.max_waiting))
    health_names = [_health_name(route) for route in Route]
    server = GrpcServer(settings.server_options(), [_SERVICE], health_names, settings.auth_interceptors())
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    running = asyncio.create_task(_run(settings, engine, servicer, server, port), name="run the engine")
    server.supervise(running)
    try:
        with observed(*servicer.gauges()):
            return await server.run_until_stopped()
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await engine.stop()
        processes.stop_resource_tracker()


async def _run(
    settings: TargetSettings, engine: Engine, servicer: TargetServicer, server: GrpcServer, port: int
) -> None:
    try:
        await engine.start()
        await generate_one_token(engine)
    except Exception as error:
        log.error("%s", error, exc_info=not isinstance(error, PresiftError))
        server.request_stop(failed=True)
        return
    servicer.use(engine)
    freeze_loaded_objects()
    await server.set_serving(True, [_health_name(route) for route in Route if route not in engine.info.routes])
    host = settings.listen.rpartition(":")[0]
    print(f"presift target ready on {host}:{port}: {engine.info.model.id}, {engine.info.name}", flush=True)
    await engine.died()
    server.request_stop(failed=True)


def _health_name(route: Route) -> str:
    """The name under which grpc.health.v1 reports whether a route is served."""
    return f"{_SERVICE}/{route}"


async def generate_one_token(engine: Engine) -> None:
    """Prove that the engine generates before the service reports that it is ready. Raises TargetUnavailable."""
    request = GenerateRequest(np.zeros(1, dtype=np.uint32), Sampling(max_new_tokens=1, ignore_eos=True))
    async for _ in engine.generate(request):
        pass


def engine_options(settings: TargetSettings) -> SglangOptions:
    """The engine options of `settings`. Raises InvalidRequest if the model does not exist."""
    return SglangOptions(
        folder=resolve(settings.model),
        dtype=settings.dtype,
        device=settings.device,
        context_tokens=settings.context_tokens,
        kv_pool_tokens=settings.kv_pool_tokens,
        kv_page_tokens=settings.kv_page_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        attention_backend=settings.attention_backend,
        threads=settings.threads,
        max_running=settings.max_running,
        kv_dropping=settings.kv_dropping,
        tool_call_parser=settings.tool_call_parser,
        reasoning_parser=settings.reasoning_parser,
        tensor_parallel=settings.tensor_parallel,
        data_parallel=settings.data_parallel,
        log_level="info" if settings.log_level == "DEBUG" else "error",
    )


if __name__ == "__main__":
    sys.exit(main())
