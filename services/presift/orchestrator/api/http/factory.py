"""The HTTP door by its settings."""

from __future__ import annotations

from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.http.app import application
from presift.orchestrator.api.http.call import Calling
from presift.orchestrator.api.http.endpoints import Asking, Terms
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.server import HttpOptions, HttpServer
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.rpc.server.server import GrpcServer


def open_http(
    settings: OrchestratorSettings, pipeline: Pipeline, door: Authenticator | None, server: GrpcServer
) -> HttpServer | None:
    """None where there is to be none. It is not started, and is to be one of `server`'s doors. Raises PresiftError."""
    if settings.http_listen is None:
        return None
    options = settings.server_options()
    terms = Terms(
        options.max_message_bytes, settings.http_max_tokens, settings.secret("tenant_salt"), explains=settings.explain
    )
    models = ServedModels(pipeline.target_info, settings.http_models)
    app = application(
        Calling(door, server.calls), Asking(pipeline, models, terms), models, is_serving=lambda: server.is_serving
    )
    known = HttpOptions(settings.http_listen, options.tls, options.insecure, knows_callers=settings.knows_callers)
    return HttpServer(app, known)
