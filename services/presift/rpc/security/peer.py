"""How a service connects to another: TLS, the expected name, and the token to send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import grpc

from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.service_token import Tokens, bearer


@dataclass(frozen=True, slots=True)
class Peer:
    """`tls` None is plain text. `name_override` is the name in the peer's certificate, if it is not the address.

    The first of `tokens` is sent.
    """

    tls: TlsFiles | None = None
    name_override: str = ""
    tokens: Tokens | None = None

    def with_name(self, name: str) -> Self:
        """The same for a peer that is reached by address but whose certificate has `name`. A set name stays."""
        return self if self.tls is None or self.name_override else replace(self, name_override=name)

    def interceptors(self) -> list[grpc.aio.ClientInterceptor]:
        """Interceptors that send the token."""
        return [] if self.tokens is None else [_TokenInterceptor(self.tokens), _TokenStreamInterceptor(self.tokens)]

    def options(self) -> list[tuple[str, Any]]:
        """Channel options."""
        return [("grpc.ssl_target_name_override", self.name_override)] if self.name_override else []


PLAIN = Peer()


class _TokenInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_token(client_call_details, self._tokens), request)


class _TokenStreamInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_token(client_call_details, self._tokens), request)


def _with_token(details: Any, tokens: Tokens) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), bearer(tokens.current()[0]))
    return details._replace(metadata=metadata)
