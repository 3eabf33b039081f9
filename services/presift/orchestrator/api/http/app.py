"""The routes of the door. No CORS: pages of other sites get nothing here."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from presift.orchestrator.api.http.call import Calling, Endpoint, Handled
from presift.orchestrator.api.http.endpoints import Asking
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.statuses import METHOD_NOT_ALLOWED, NOT_FOUND, HttpRefusal, refusal_of
from presift.orchestrator.api.http.tracing import OTHER, told


def application(calling: Calling, asking: Asking, models: ServedModels, is_serving: Callable[[], bool]) -> Starlette:
    """`is_serving` is what gRPC's health says; health is asked without a key, and answered when all else is full."""

    async def health(request: Request) -> Response:
        serves = is_serving()
        return JSONResponse({"status": "serving" if serves else "not serving"}, 200 if serves else 503)

    def route(method: str, path: str, endpoint: Endpoint) -> Route:
        return Route(path, Handled(calling, path, endpoint), methods=[method])

    routes = [
        route("POST", "/v1/chat/completions", asking.chat),
        route("POST", "/v1/completions", asking.complete),
        route("GET", "/v1/models", models.all),
        route("GET", "/v1/models/{model:path}", models.one),
        Route("/health", health, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse})
    # It would send strangers on to whatever host their own header names.
    app.router.redirect_slashes = False
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    is_method = isinstance(error, HTTPException) and error.status_code == METHOD_NOT_ALLOWED.status
    row = METHOD_NOT_ALLOWED if is_method else NOT_FOUND
    known = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health"
    refusal = refusal_of(HttpRefusal(row, f"there is no such thing here; there is {known}"))
    told(OTHER, refusal.status)
    allowed = dict(error.headers or {}) if isinstance(error, HTTPException) else {}  # a 405 says what is
    return JSONResponse(refusal.body, refusal.status, headers=refusal.headers | allowed)
