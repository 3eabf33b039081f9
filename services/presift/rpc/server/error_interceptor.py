"""Turns presift's errors into gRPC statuses. Any other exception becomes INTERNAL and is logged once."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from presift.core.errors import InternalError, InvalidRequest, PresiftError
from presift.rpc.large_input import LARGE_BYTES, in_thread, received_bytes
from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.server.field_count import check_field_count
from presift.rpc.server.handlers import (
    Behavior,
    Context,
    Continuation,
    Deserializer,
    Handler,
    Serializer,
    with_behavior,
)
from presift.rpc.status import DETAILS_KEY, code_and_reason, details_of, message_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Refused:
    """Replaces a request that is not parsed, so that its call gets `error` (gRPC would say INTERNAL)."""

    error: PresiftError


@dataclass(slots=True)
class _Unparsed:
    """Replaces a large request, which is parsed in another thread: gRPC parses on the event loop.

    `parse` holds the received bytes. gRPC keeps this object until the call ends, so it is None once it is called.
    """

    parse: Callable[[], Any] | None


_MALFORMED = _Refused(InvalidRequest("request", "not a valid protobuf message", "valid protobuf with UTF-8 strings"))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Translates the errors of every method. `calls` knows which calls were cancelled by the server's shutdown."""

    def __init__(self, calls: ActiveCalls | None = None) -> None:
        self._calls = ActiveCalls(sys.maxsize) if calls is None else calls

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        translate = partial(_translate_stream if handler.response_streaming else _translate_unary, self._calls)
        deserialize = handler.request_deserializer
        if not handler.request_streaming:
            deserialize = _checked(self._calls, deserialize)
        return with_behavior(handler, translate, deserialize, _unless_bytes(handler.response_serializer))


def _unless_bytes(serialize: Serializer | None) -> Serializer | None:
    """For a method that serializes its response itself, if it is large."""
    if serialize is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serialize(response)


def _checked(calls: ActiveCalls, deserialize: Deserializer | None) -> Deserializer | None:
    if deserialize is None:
        return None
    # FromString is bound to its message's class.
    descriptor = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)

    def attempt(raw: bytes) -> Any:
        received_bytes.set(len(raw))
        try:
            calls.hold(len(raw))
        except PresiftError as error:
            return _Refused(error)
        return parse(raw) if len(raw) < LARGE_BYTES else _Unparsed(partial(parse, raw))

    def parse(raw: bytes) -> Any:
        try:
            if descriptor is not None:
                check_field_count(raw, descriptor)
            return deserialize(raw)
        except DecodeError:
            return _MALFORMED
        except PresiftError as error:
            return _Refused(error)

    return attempt


def _translate_unary(calls: ActiveCalls, behavior: Behavior) -> Behavior:
    async def translated(request: Any, context: Context) -> Any:
        try:
            request = await _parsed(request)
            response = await behavior(request, context)
            if isinstance(response, bytes):
                calls.hold(len(response))  # until it is read, which its caller may not do
            return response
        except Exception as error:
            await abort_with(error, context)
        except asyncio.CancelledError:
            await abort_if_shutting_down(calls, context)
            raise

    return translated


def _translate_stream(calls: ActiveCalls, behavior: Behavior) -> Behavior:
    async def translated(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            request = await _parsed(request)
            responses = behavior(request, context)
            if inspect.isawaitable(responses):  # a method that writes to the context, as grpc_health's Watch does
                await responses
                return
            async with aclosing(responses) as stream:
                async for response in stream:
                    yield response
        except Exception as error:
            await abort_with(error, context)
        except asyncio.CancelledError:
            await abort_if_shutting_down(calls, context)
            raise

    return translated


async def _parsed(request: Any) -> Any:
    """The request as a message. Raises the error of one that is refused."""
    if isinstance(request, _Unparsed):
        parse, request.parse = request.parse, None
        assert parse is not None
        request = await in_thread(parse)
    if isinstance(request, _Refused):
        raise request.error
    return request


async def abort_if_shutting_down(calls: ActiveCalls, context: Context) -> None:
    """Send ShuttingDown if the shutdown of the server cancelled the current call."""
    error = calls.shutdown_error()
    if error is not None:
        await abort_with(error, context)


async def abort_with(error: Exception, context: Context) -> NoReturn:
    """Send the error as the status of the call."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, PresiftError):
        # The text of an unexpected exception may quote the prompt: log and send only its type and location.
        log.error("unexpected %s", type(error).__name__, exc_info=without_text(error))
        error = InternalError(f"unexpected {type(error).__name__}; see the service's log")
    code, _ = code_and_reason(error)
    try:
        await context.abort(code, message_of(error), ((DETAILS_KEY, details_of(error)),))
    except grpc.aio.AbortError as abort:
        raise abort from None  # a trace would record the cause, with its text


def without_text(error: BaseException) -> tuple[type[BaseException], Exception, Any]:
    """`exc_info` for the log, without the text of the exception."""
    return type(error), Exception("(text withheld)"), error.__traceback__
