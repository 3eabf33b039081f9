"""A request's body: bounded in size and time, JSON alone."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive

from presift.core.errors import InvalidRequest
from presift.orchestrator.http.leaving import CallerLeft
from presift.orchestrator.http.statuses import BODY_TIMEOUT, TOO_LARGE, UNSUPPORTED_MEDIA, HttpRefusal

# Seconds in which the whole body must have come: a call counts from its first header on.
BODY_S = 120.0


async def json_object(headers: Headers, receive: Receive, max_bytes: int) -> dict[str, Any]:
    """Raises InvalidRequest for what is no JSON object, HttpRefusal for what is not read, CallerLeft."""
    raw = await _body(headers, receive, max_bytes)
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:  # says where, quotes nothing
        raise InvalidRequest("body", f"not JSON ({error})", "a JSON object") from None
    if not isinstance(value, dict):
        raise InvalidRequest("body", "another JSON value", "a JSON object")
    return value


async def _body(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    # A page of another site can send forms and plain text without asking; JSON it cannot.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpRefusal(UNSUPPORTED_MEDIA, "the body must be JSON: content-type application/json")
    # 64 MiB of gzip may hold 64 GiB.
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpRefusal(UNSUPPORTED_MEDIA, "compressed bodies are not taken: send it without content-encoding")
    said = headers.get("content-length", "0")
    if said.isdecimal() and int(said[:20]) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_S):
            return await _chunks(receive, max_bytes)
    except TimeoutError:
        raise HttpRefusal(BODY_TIMEOUT, f"the body did not come within {BODY_S:g} s") from None


async def _chunks(receive: Receive, max_bytes: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        more = message.get("more_body", False)
    return bytes(body)


def _too_large(max_bytes: int) -> HttpRefusal:
    return HttpRefusal(TOO_LARGE, f"the body is larger than {max_bytes} bytes (max_message_mib)")
