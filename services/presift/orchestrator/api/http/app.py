"""The HTTP application: its routes, and how it is built from settings. There is no CORS."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.http.call import UNKNOWN_ROUTE, Access, CallHandler, Endpoint, count_response
from presift.orchestrator.api.http.endpoints import CompletionEndpoints, EndpointOptions
from presift.orchestrator.api.http.errors import METHOD_NOT_ALLOWED, NOT_FOUND, HttpError, error_response
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.server import HttpOptions, HttpServer
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.rpc.server.server import GrpcServer


def open_http(
    settings: OrchestratorSettings, pipeline: Pipeline, authenticator: Authenticator | None, server: GrpcServer
) -> HttpServer | None:
    """The HTTP server, not started; None if `http_listen` is unset. Raises PresiftError."""
    if settings.http_listen is None:
        return None
    options = settings.server_options()
    endpoint_options = EndpointOptions(
        options.max_message_bytes, settings.http_max_tokens, settings.secret("tenant_salt"), explains=settings.explain
    )
    models = ServedModels(pipeline.target_info, settings.http_models)
    completions = CompletionEndpoints(pipeline, models, endpoint_options)
    app = application(Access(authenticator, server.calls), completions, models, lambda: server.is_serving)
    return HttpServer(
        app, HttpOptions(settings.http_listen, options.tls, options.insecure, knows_callers=settings.knows_callers)
    )


def application(
    access: Access, completions: CompletionEndpoints, models: ServedModels, is_serving: Callable[[], bool]
) -> Starlette:
    """`is_serving` is gRPC's health. /health needs no key and is answered even when the server is full."""

    async def health(request: Request) -> Response:
        serves = is_serving()
        return JSONResponse({"status": "serving" if serves else "not serving"}, 200 if serves else 503)

    def route(method: str, path: str, endpoint: Endpoint) -> Route:
        return Route(path, CallHandler(access, path, endpoint), methods=[method])

    routes = [
        route("POST", "/v1/chat/completions", completions.chat),
        route("POST", "/v1/completions", completions.text),
        route("GET", "/v1/models", models.list),
        route("GET", "/v1/models/{model:path}", models.retrieve),
        Route("/health", health, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _send_error})
    # A redirect would send callers to whatever host their own header names.
    app.router.redirect_slashes = False
    return app


async def _send_error(request: Request, error: Exception) -> Response:
    is_method = isinstance(error, HTTPException) and error.status_code == METHOD_NOT_ALLOWED.status
    row = METHOD_NOT_ALLOWED if is_method else NOT_FOUND
    known = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health"
    response = error_response(HttpError(row, f"unknown path or method; known: {known}"))
    count_response(UNKNOWN_ROUTE, response.status)
    allowed = dict(error.headers or {}) if isinstance(error, HTTPException) else {}  # of a 405
    return JSONResponse(response.body, response.status, headers=response.headers | allowed)
