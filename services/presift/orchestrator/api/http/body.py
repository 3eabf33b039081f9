"""Reads a request's body: JSON only, bounded in size, time and number of values."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import (
    BODY_TIMEOUT,
    TOO_LARGE,
    UNSUPPORTED_MEDIA,
    ClientDisconnected,
    HttpError,
)

# Seconds in which the whole body must arrive: a call counts as running meanwhile.
BODY_S = 120.0
# A value takes two bytes in the body and up to hundreds in memory. One call into C builds all of them, and no other
# thread runs meanwhile. The limits are above the longest list of token ids and any chat with its tools.
MAX_VALUES = 2**21
MAX_NESTED = 2**19
_MARKS = re.compile(rb'\\.|[",:\[{]', re.DOTALL)


def parse_json_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Raises InvalidRequest for anything but a JSON object, and for too many values."""
    _check_values(raw)
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:  # names the position, quotes nothing
        raise InvalidRequest("body", f"not JSON ({error})", "a JSON object") from None
    if not isinstance(value, dict):
        raise InvalidRequest("body", "another JSON value", "a JSON object")
    return value


def _check_values(raw: bytes | bytearray) -> None:
    """Commas and brackets inside strings do not count."""
    if raw.count(b",") <= MAX_VALUES and sum(map(raw.count, (b"{", b"[", b":"))) <= MAX_NESTED:
        return
    is_text, values, nested = False, 0, 0
    for found in _MARKS.finditer(raw):
        mark = found[0]
        if mark == b'"':
            is_text = not is_text
        elif is_text or len(mark) > 1:
            continue
        elif mark == b",":
            values += 1
        else:
            nested += 1
        if values > MAX_VALUES or nested > MAX_NESTED:
            limit = f"at most {MAX_VALUES} values, and {MAX_NESTED} objects, lists and keys"
            raise InvalidRequest("body", "too large", limit, f"the body has too many values; it may have {limit}")


async def read_body(headers: Headers, receive: Receive, max_bytes: int, hold: Callable[[int], None]) -> bytearray:
    """`hold` counts bytes that have arrived. Raises HttpError for a body that is not read, and ClientDisconnected."""
    # A page of another site can send forms and plain text without CORS, but not JSON.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(UNSUPPORTED_MEDIA, "the body must be JSON: content-type application/json")
    # 34 MiB of gzip may hold 34 GiB.
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpError(UNSUPPORTED_MEDIA, "compressed bodies are not supported: send it without content-encoding")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_S):
            return await _chunks(receive, max_bytes, hold)
    except TimeoutError:
        raise HttpError(BODY_TIMEOUT, f"the body did not arrive within {BODY_S:g} s") from None


async def _chunks(receive: Receive, max_bytes: int, hold: Callable[[int], None]) -> bytearray:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece = message.get("body", b"")
        if len(body) + len(piece) > max_bytes:
            raise _too_large(max_bytes)
        hold(len(piece))
        body += piece
        more = message.get("more_body", False)
    return body


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(TOO_LARGE, f"the body is larger than {max_bytes} bytes (max_message_mib)")
