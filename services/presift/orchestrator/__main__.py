"""`python -m presift.orchestrator`: listen, find target and draft, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import sys

from presift.core.errors import PresiftError
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.factory import build_authenticator
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.api.grpc.servicer import OrchestratorServicer
from presift.orchestrator.api.http.app import open_http
from presift.orchestrator.app import App, build_app
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.config.reload import PolicySource, policy_source, reload_on_sighup
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.rpc.server.run import run
from presift.rpc.server.server import GrpcServer
from presift.telemetry.gauges import observed
from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc

# Seconds, and how often in a row none may be there: one that only restarts its connection is no outage.
_LOOK_EVERY_S, _LOOKS = 1.0, 3

log = logging.getLogger(__name__)


def main() -> int:
    """0 after a clean drain, 1 if the service could not start."""
    return run("orchestrator", OrchestratorSettings(), serve)


async def serve(settings: OrchestratorSettings) -> bool:
    """Serve until SIGTERM or SIGINT; False if something failed. Raises PresiftError, VocabularyMismatch among them."""
    terms, door = policy_source(settings), build_authenticator(settings)
    files = [each for each in (terms if terms.has_file else None, door) if each is not None]
    async with reload_on_sighup(*files):
        assembly = build_app(settings, terms)
        try:
            return await _serve(settings, assembly, terms, door)
        finally:
            await assembly.aclose()


async def _serve(
    settings: OrchestratorSettings, assembly: App, terms: PolicySource, door: Authenticator | None
) -> bool:
    name = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name
    guards = [] if door is None else [AuthInterceptor(door)]
    server = GrpcServer(settings.server_options(), [name], guards=guards)
    servicer = OrchestratorServicer(
        assembly.pipeline, assembly.models, terms, explains=settings.explain, salt=settings.secret("tenant_salt")
    )
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, server.grpc)
    http = open_http(settings, assembly.pipeline, door, server)
    if http is not None:  # its address first: what is wrong with it is told before anything is served
        print(f"presift orchestrator takes HTTP on {await http.start()}", flush=True)
        server.doors.append(http)
    port = await server.start()
    becoming_ready = asyncio.create_task(_become_ready(settings, assembly, server, port))
    try:
        with observed(*assembly.gauges):
            stopped = await server.run_until_stopped()
        if becoming_ready.done() and not becoming_ready.cancelled():
            becoming_ready.result()
        return stopped
    finally:
        becoming_ready.cancel()


async def _become_ready(settings: OrchestratorSettings, assembly: App, server: GrpcServer, port: int) -> None:
    try:
        target = await assembly.models.connect()
    except PresiftError:
        server.request_stop(failed=True)
        raise
    await server.set_serving(True)
    host = settings.listen.rpartition(":")[0]
    print(f"presift orchestrator ready on {host}:{port}: {target.model.id}", flush=True)
    assembly.calibration.start()
    await _follow_target(assembly.models, server)


async def _follow_target(models: ModelRegistry, server: GrpcServer) -> None:
    """Serve as long as some target can be reached: a balancer takes callers elsewhere meanwhile."""
    serves, misses = True, 0
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        misses = 0 if models.has_target_now else misses + 1
        if serves is not (misses < _LOOKS):
            serves = misses < _LOOKS
            log.warning("a target can be reached again" if serves else "no target can be reached: not serving")
            await server.set_serving(serves)


if __name__ == "__main__":
    sys.exit(main())
