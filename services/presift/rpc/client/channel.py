"""Channels to other services: message limits, keepalive, and the retries that the contract says are safe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from presift.rpc.client.reloading_channel import ReloadingChannel
from presift.rpc.limits import HARDENED
from presift.rpc.security.certificates import TlsPems, channel_credentials
from presift.rpc.security.peer import PLAIN, Peer


def service_config(retryable: Sequence[tuple[str, str]], health: str = "") -> str:
    """gRPC's own service config: round robin, retries on UNAVAILABLE for (service, method) pairs, throttled where most
    fail, and health checking by the name `health`: who does not serve is not called.

    gRPC retries a streaming call only while nothing was received, which is what the contract allows.
    """
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
        "methodConfig": [
            {
                "name": [{"service": service, "method": method} for service, method in retryable],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
    if health:
        config["healthCheckConfig"] = {"serviceName": health}
    return json.dumps(config)


class CancelOnCallerCancel(grpc.aio.UnaryUnaryClientInterceptor):
    """Ends a call on the wire when its caller is cancelled; OpenTelemetry's interceptor, which waits for it, does not.

    To stand next to the wire, so last.
    """

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        call = await continuation(client_call_details, request)
        try:
            await call.code()
        except asyncio.CancelledError:
            call.cancel()
            raise
        return call


def open_channel(
    address: str,
    *,
    retryable: Sequence[tuple[str, str]] = (),
    max_message_bytes: int = 64 * 2**20,
    health: str = "",
    peer: Peer = PLAIN,
) -> grpc.aio.Channel:
    """A traced channel to HOST:PORT or any gRPC target name (`dns:///draft:50051`). Connects on first use.

    `health`: a service whose grpc.health.v1 status is a part of the channel's state; empty asks for none.
    Raises PresiftError for certificates that cannot be used; where they change later, new calls use the new ones.
    """
    interceptors = [*aio_client_interceptors(), *peer.interceptors(), CancelOnCallerCancel()]
    options = [*_options(service_config(retryable, health), max_message_bytes), *peer.options()]
    if peer.tls is None:
        return grpc.aio.insecure_channel(address, interceptors=interceptors, options=options)

    def open_one(pems: TlsPems) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, channel_credentials(pems), options, interceptors=interceptors)

    return ReloadingChannel(peer.tls.watched(), open_one)


def _options(config: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # What gRPC does not keep it cannot send again: by default calls of up to 256 KiB alone.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # A peer that is gone without a word (half-open) is found within 8 s, also in the middle of a long wait.
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        # For gRPC's own pings (bandwidth): while one is out no keepalive is sent, and it would wait for a minute.
        ("grpc.http2.ping_timeout_ms", 6_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A peer that restarts must be found again within seconds, not after gRPC's default two minutes.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Not a connection shared with an earlier channel to this address: that may just be ending with its server.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.service_config", config),
        *HARDENED,
    ]
