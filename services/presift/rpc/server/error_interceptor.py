"""Turns presift's errors into gRPC statuses. Any other exception becomes INTERNAL and is logged once."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

from presift.core.errors import InternalError, InvalidRequest, PresiftError
from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.status import DETAILS_KEY, code_and_reason, details_of, message_of

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # grpc generics exist in the stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]


class _Malformed:
    """Replaces a request that is not valid protobuf, so that it gets INVALID_ARGUMENT (gRPC would say INTERNAL)."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Translates the errors of every method. `calls` knows which calls were cancelled by the server's shutdown."""

    def __init__(self, calls: ActiveCalls | None = None) -> None:
        self._calls = ActiveCalls(sys.maxsize) if calls is None else calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.request_streaming:
            return _translate_streaming(handler, self._calls)
        deserialize, serialize = _lenient(handler.request_deserializer), handler.response_serializer
        if handler.response_streaming:
            translated = _translate_stream(handler.unary_stream, self._calls)
            return grpc.unary_stream_rpc_method_handler(translated, deserialize, serialize)
        translated = _translate_unary(handler.unary_unary, self._calls)
        return grpc.unary_unary_rpc_method_handler(translated, deserialize, serialize)


def _translate_streaming(handler: Any, calls: ActiveCalls) -> Handler:
    if not handler.response_streaming:  # no service has such a method
        return cast("Handler", handler)
    return grpc.stream_stream_rpc_method_handler(
        _translate_stream(handler.stream_stream, calls), handler.request_deserializer, handler.response_serializer
    )


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def attempt(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError:
            return _Malformed()

    return attempt


def _translate_unary(behavior: Callable[..., Any], calls: ActiveCalls) -> Callable[..., Any]:
    async def translated(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            _refuse_malformed(request)
            return await behavior(request, context)
        except Exception as error:
            await _abort(error, context)
        except asyncio.CancelledError:
            await _abort_if_shutting_down(calls, context)
            raise

    return translated


def _translate_stream(behavior: Callable[..., Any], calls: ActiveCalls) -> Callable[..., Any]:
    async def translated(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            _refuse_malformed(request)
            responses = behavior(request, context)
            if inspect.isawaitable(responses):  # a method that writes to the context, as grpc_health's Watch does
                await responses
                return
            async with aclosing(responses) as stream:
                async for response in stream:
                    yield response
        except Exception as error:
            await _abort(error, context)
        except asyncio.CancelledError:
            await _abort_if_shutting_down(calls, context)
            raise

    return translated


def _refuse_malformed(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise InvalidRequest("request", "not a valid protobuf message", "valid protobuf with UTF-8 strings")


async def _abort_if_shutting_down(calls: ActiveCalls, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    error = calls.shutdown_error()
    if error is not None:
        await _abort(error, context)


async def _abort(error: Exception, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
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
