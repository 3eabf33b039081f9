"""`x-request-id`: the caller's, or one made here. It is in every response, and in the request's span and log lines."""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from presift.telemetry.request_id import request_id

HEADER = "x-request-id"
# What load balancers and clients make: UUIDs, hex, base64, ids with a prefix. Nothing that could forge a log line.
_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIds:
    """Wraps an application: each of its requests has an id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).getlist(HEADER)
        current = given[0] if len(given) == 1 and _SANE.fullmatch(given[0]) else f"req_{secrets.token_hex(16)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = current
            await send(message)

        token = request_id.set(current)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            request_id.reset(token)
