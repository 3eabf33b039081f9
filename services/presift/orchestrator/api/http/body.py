"""A request's body: bounded in size and time, JSON alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.disconnect import CallerLeft
from presift.orchestrator.api.http.statuses import BODY_TIMEOUT, TOO_LARGE, UNSUPPORTED_MEDIA, HttpRefusal

# Seconds in which the whole body must have come: a call counts from its first header on.
BODY_S = 120.0
# From so many bytes on, a body is worked on aside: all calls of both doors share one event loop.
ASIDE_BYTES = 2**18
# A value takes two bytes here and up to hundreds in memory, and one call into C makes them all: nothing else runs
# meanwhile, in no thread. More than the longest list of token ids, and than any chat with its tools, has.
MAX_VALUES = 2**21
MAX_NESTED = 2**19
_MARKS = re.compile(rb'\\.|[",:\[{]', re.DOTALL)

T = TypeVar("T")


async def aside(size: int, work: Callable[[], T]) -> T:
    """What `work` returns, in another thread where it is about a body of many bytes."""
    return work() if size < ASIDE_BYTES else await asyncio.to_thread(work)


def json_object(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest for what is no JSON object, or has too many values."""
    _check_values(raw)
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:  # says where, quotes nothing
        raise InvalidRequest("body", f"not JSON ({error})", "a JSON object") from None
    if not isinstance(value, dict):
        raise InvalidRequest("body", "another JSON value", "a JSON object")
    return value


def _check_values(raw: bytes) -> None:
    """Texts may hold as many commas and brackets as they like."""
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
            limit = f"at most {MAX_VALUES} values, {MAX_NESTED} objects, lists and keys"
            raise InvalidRequest("body", "of more values", limit)


async def body_of(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    """Raises HttpRefusal for what is not read, and CallerLeft."""
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
