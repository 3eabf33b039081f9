"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self, Unpack

import grpc

from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from presift_client.channels import TlsOptions, channel_options, metadata_of
from presift_client.errors import error_of
from presift_client.explanation import Explanation, explanation_of
from presift_client.requests import ExplainOptions, Options, explain_request, generate_request
from presift_client.results import Event, Generation, Info, event_of, gather, info_of


class AsyncClient:
    """A client of the orchestrator at `address` (HOST:PORT), for one event loop. Use it in an `async with` block.

    `tls` None is plaintext; `TlsOptions()` trusts the public authorities. `api_key` authenticates the caller; without
    `tls` it is sent unencrypted. `tenant` (1-64 of A-Z a-z 0-9 . _ -) selects the defaults that apply; it does not
    authenticate. Raises ValueError for a key or tenant that cannot be sent, and OSError for an unreadable TLS file.

    Calls raise PresiftError. gRPC retries them on UNAVAILABLE while nothing was received, and never after that.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        tls: TlsOptions | None = None,
        api_key: str | None = None,
        tenant: str | None = None,
        max_message_bytes: int = 64 * 2**20,
    ) -> None:
        self._metadata = metadata_of(tenant, api_key)
        options = channel_options(address, max_message_bytes, tls)
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if tls is None
            else grpc.aio.secure_channel(address, tls.credentials(), options)
        )
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channel)

    async def generate(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """The whole answer to a text `prompt`, `messages` or `token_ids`. Invalid options raise as `stream` does."""
        async with aclosing(self.stream(prompt, **options)) as events:
            return gather([event async for event in events])

    def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """One Decision, then Deltas, then one Usage for each answer.

        Closing the generator cancels the request at every service.

        Raises TypeError for an unknown option, ValueError for an invalid value or not exactly one prompt, and
        InvalidRequest for text that is not valid Unicode, before anything is sent.
        """
        return self._events(generate_request(prompt, options), options.get("deadline_s"))

    async def explain(self, prompt: str | None = None, **options: Unpack[ExplainOptions]) -> Explanation:
        """What would be kept of a prompt and why, without an answer. Invalid options raise as `stream` does."""
        request = explain_request(prompt, options)
        try:
            return explanation_of(
                await self._stub.Explain(request, timeout=options.get("deadline_s"), metadata=self._metadata)
            )
        except grpc.RpcError as failure:
            raise error_of(failure) from None

    async def info(self, deadline_s: float | None = 10.0) -> Info:
        """The models, routes and replicas of the orchestrator."""
        request = orchestrator_pb2.GetInfoRequest()
        try:
            return info_of(await self._stub.GetInfo(request, timeout=deadline_s, metadata=self._metadata))
        except grpc.RpcError as failure:
            raise error_of(failure) from None

    async def aclose(self) -> None:
        """Cancel all calls and close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _events(
        self, request: orchestrator_pb2.GenerateRequest, deadline_s: float | None
    ) -> AsyncGenerator[Event, None]:
        call = self._stub.Generate(request, timeout=deadline_s, metadata=self._metadata)
        received_tokens = 0
        try:
            async for response in call:
                received_tokens += len(response.delta.token_ids)
                yield event_of(response)
        except grpc.RpcError as failure:
            raise error_of(failure, received_tokens) from None
        finally:
            call.cancel()
