"""How a service reaches another: whom it trusts there and what it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import grpc

from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.service_token import Tokens, bearer


@dataclass(frozen=True, slots=True)
class Peer:
    """`tls` None is plain. `name_override` is the name that the other's certificate must have, where that is not its
    address. Of `tokens` the first is shown.
    """

    tls: TlsFiles | None = None
    name_override: str = ""
    tokens: Tokens | None = None

    def called(self, name: str) -> Self:
        """The same where it is reached by its addresses, but known by `name`: so its certificate says. What was set
        stays."""
        return self if self.tls is None or self.name_override else replace(self, name_override=name)

    def interceptors(self) -> list[grpc.aio.ClientInterceptor]:
        """What shows the token."""
        return [] if self.tokens is None else [_ShowsToken(self.tokens), _ShowsTokenForStream(self.tokens)]

    def options(self) -> list[tuple[str, Any]]:
        """Of the channel."""
        return [("grpc.ssl_target_name_override", self.name_override)] if self.name_override else []


PLAIN = Peer()


class _ShowsToken(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_showing(client_call_details, self._tokens), request)


class _ShowsTokenForStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_showing(client_call_details, self._tokens), request)


def _showing(details: Any, tokens: Tokens) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), bearer(tokens.current()[0]))
    return details._replace(metadata=metadata)
