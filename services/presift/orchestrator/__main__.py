"""`python -m presift.orchestrator`: listen, connect to target and draft, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import sys

from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.factory import build_authenticator
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.api.grpc.servicer import OrchestratorServicer
from presift.orchestrator.api.http.app import open_http
from presift.orchestrator.app import App, build_app
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.config.reload import PolicySource, policy_source, reload_on_sighup
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.caller import proven_tenant
from presift.orchestrator.redis_check import check_redis
from presift.rpc.server.run import freeze_loaded_objects, run
from presift.rpc.server.server import GrpcServer
from presift.telemetry.gauges import observed
from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc

# The target is checked every so many seconds. Several failed checks in a row are an outage; a reconnect is not.
_CHECK_EVERY_S, _FAILED_CHECKS = 1.0, 3

log = logging.getLogger(__name__)


def main() -> int:
    """0 after a clean drain, 1 if the service could not start."""
    return run("orchestrator", OrchestratorSettings(), serve)


async def serve(settings: OrchestratorSettings) -> bool:
    """Serve until SIGTERM or SIGINT; False after a failure. Raises PresiftError, VocabularyMismatch among them."""
    policies, authenticator = policy_source(settings), build_authenticator(settings)
    files = [each for each in (policies if policies.file else None, authenticator) if each is not None]
    async with reload_on_sighup(*files):
        app = build_app(settings, policies)
        try:
            has_limits = authenticator is not None and authenticator.sets_limits
            await check_redis(settings.resolved_cache_url(), has_limits=has_limits)
            return await _serve(settings, app, policies, authenticator)
        finally:
            await app.aclose()


async def _serve(
    settings: OrchestratorSettings, app: App, policies: PolicySource, authenticator: Authenticator | None
) -> bool:
    name = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name
    auth_interceptors = [] if authenticator is None else [AuthInterceptor(authenticator)]
    server = GrpcServer(
        settings.server_options(), [name], auth_interceptors=auth_interceptors, tenant_of_call=proven_tenant
    )
    servicer = OrchestratorServicer(
        app.pipeline, app.models, policies, explains=settings.explain, salt=settings.secret("tenant_salt")
    )
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, server.grpc)
    http = open_http(settings, app.pipeline, authenticator, server)
    if http is not None:  # bound first, so that an error in its address is reported before anything is served
        print(f"presift orchestrator takes HTTP on {await http.start()}", flush=True)
        server.listeners.append(http)
    port = await server.start()
    becoming_ready = asyncio.create_task(_become_ready(settings, app, server, port), name="follow the target")
    server.supervise(becoming_ready)
    try:
        with observed(*app.gauges):
            stopped = await server.run_until_stopped()
        if becoming_ready.done() and not becoming_ready.cancelled():
            becoming_ready.result()
        return stopped
    finally:
        becoming_ready.cancel()


async def _become_ready(settings: OrchestratorSettings, app: App, server: GrpcServer, port: int) -> None:
    target = await app.models.connect()
    freeze_loaded_objects()
    await server.set_serving(True)
    host = settings.listen.rpartition(":")[0]
    print(f"presift orchestrator ready on {host}:{port}: {target.model.id}", flush=True)
    app.calibration.start()
    await _follow_target(app.models, server)


async def _follow_target(models: ModelRegistry, server: GrpcServer) -> None:
    """Report NOT_SERVING while no target can be reached, so that load balancers use another orchestrator."""
    serves, failed = True, 0
    while True:
        await asyncio.sleep(_CHECK_EVERY_S)
        failed = 0 if models.has_target_now else failed + 1
        if serves is not (failed < _FAILED_CHECKS):
            serves = failed < _FAILED_CHECKS
            log.warning("a target is reachable again" if serves else "no target is reachable: not serving")
            await server.set_serving(serves)


if __name__ == "__main__":
    sys.exit(main())
