"""The HTTP application: its routes, what wraps them, and how it is built from settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.http.call import UNKNOWN_ROUTE, Access, CallHandler, Endpoint, count_response
from presift.orchestrator.api.http.docs import DocsPages
from presift.orchestrator.api.http.endpoints import CompletionEndpoints, EndpointOptions
from presift.orchestrator.api.http.errors import METHOD_NOT_ALLOWED, NOT_FOUND, HttpError, error_response
from presift.orchestrator.api.http.hosts import AllowedHosts
from presift.orchestrator.api.http.messages.endpoint import MessagesEndpoints
from presift.orchestrator.api.http.messages.rendering import MessageFormat
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.paths import VERSION, CanonicalPaths, why_unknown
from presift.orchestrator.api.http.presift_json import DECISION_HEADER
from presift.orchestrator.api.http.request_ids import HEADER as REQUEST_ID
from presift.orchestrator.api.http.request_ids import RequestIds
from presift.orchestrator.api.http.responses.endpoint import ResponsesEndpoint
from presift.orchestrator.api.http.server import HttpOptions, HttpServer
from presift.orchestrator.api.http.tokenizing import TokenEndpoints
from presift.orchestrator.api.http.translated import ChatAdapter
from presift.orchestrator.api.http.wire_format import COMPLETIONS, WireFormat
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.rpc.server.server import GrpcServer

# What scripts of allowed pages may read besides the headers that browsers always show.
_EXPOSED = (REQUEST_ID, DECISION_HEADER, "retry-after", "retry-after-ms", "x-should-retry")


@dataclass(frozen=True, slots=True)
class AppOptions:
    """`keepalive_s`: seconds of silence in a stream before a comment is sent, None for never. `has_docs`: /docs and
    /openapi.json are served."""

    keepalive_s: float | None = None
    has_docs: bool = True


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
    # With TLS a browser compares the page's name with the certificate's, so a rebound name gets no connection.
    hosts = AllowedHosts.of(settings.http_listen, settings.allowed_hosts()) if options.tls is None else None
    access = Access(authenticator, server.calls, frozenset(settings.allowed_origins()), hosts)
    app_options = AppOptions(settings.http_keepalive_comment_s, settings.http_docs)
    app = application(access, completions, models, lambda: server.is_serving, app_options)
    return HttpServer(
        app, HttpOptions(settings.http_listen, options.tls, options.insecure, knows_callers=settings.knows_callers)
    )


def application(
    access: Access,
    completions: CompletionEndpoints,
    models: ServedModels,
    is_serving: Callable[[], bool],
    options: AppOptions = AppOptions(),
) -> Starlette:
    """`is_serving` is gRPC's health. /health needs no key and is answered even when the server is full."""

    async def health(request: Request) -> Response:
        serves = is_serving()
        return JSONResponse({"status": "serving" if serves else "not serving"}, 200 if serves else 503)

    answers = completions.pipeline.parts.answer_bytes

    def route(method: str, path: str, endpoint: Endpoint, format: WireFormat = COMPLETIONS) -> Route:
        handler = CallHandler(access, path, endpoint, answers, options.keepalive_s, format)
        return Route(path, handler, methods=[method])

    adapter = ChatAdapter(completions)
    responses, messages, tokens = ResponsesEndpoint(adapter), MessagesEndpoints(adapter), TokenEndpoints(adapter)
    routes = [
        route("POST", "/v1/chat/completions", completions.chat),
        route("POST", "/v1/completions", completions.text),
        route("POST", "/v1/responses", responses.create),
        route("POST", "/v1/messages", messages.create, MessageFormat()),
        route("POST", "/v1/messages/count_tokens", messages.count, MessageFormat()),
        route("POST", "/v1/tokenize", tokens.tokenize),
        route("POST", "/v1/detokenize", tokens.detokenize),
        route("GET", "/v1/models", models.list),
        route("GET", "/v1/models/{model:path}", models.retrieve),
        Route("/health", health, methods=["GET"]),
    ]
    if options.has_docs:
        docs = DocsPages()
        routes += [Route("/docs", docs.page, methods=["GET"]), Route("/openapi.json", docs.document, methods=["GET"])]
    app = Starlette(
        routes=routes,
        middleware=_middleware(routes, access.origins),
        exception_handlers={HTTPException: _ErrorSender(routes)},
    )
    # A redirect would send callers to whatever host their own header names.
    app.router.redirect_slashes = False
    return app


def _middleware(routes: Sequence[Route], origins: frozenset[str]) -> list[Middleware]:
    """From the outside in. Without `origins` there is no CORS."""
    names = [parts[2] for parts in (route.path.split("/") for route in routes) if parts[1] == VERSION]
    wrapped = [Middleware(RequestIds), Middleware(CanonicalPaths, names)]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            sorted(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )
        wrapped.append(cors)
    return wrapped


class _ErrorSender:
    """Answers requests that no route takes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """The error names the `routes`."""
        paths = (
            f"{min(route.methods - {'HEAD'})} {route.path.replace(':path', '')}" for route in routes if route.methods
        )
        self._known = ", ".join(paths)

    async def __call__(self, request: Request, error: Exception) -> Response:
        is_method = isinstance(error, HTTPException) and error.status_code == METHOD_NOT_ALLOWED.status
        why = why_unknown(request.method, request.scope["path"])
        response = error_response(
            HttpError(METHOD_NOT_ALLOWED if is_method else NOT_FOUND, f"{why}; known: {self._known}")
        )
        count_response(UNKNOWN_ROUTE, response.status)
        allowed = dict(error.headers or {}) if isinstance(error, HTTPException) else {}  # of a 405
        return JSONResponse(response.body, response.status, headers=response.headers | allowed)
