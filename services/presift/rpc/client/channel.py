"""Channels to other services: message limits, keepalive, and retries of the methods that are safe to repeat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors, filters

from presift.rpc.client.reloading_channel import ReloadingChannel
from presift.rpc.limits import HARDENED
from presift.rpc.security.certificates import TlsPems, channel_credentials
from presift.rpc.security.peer import PLAIN, Peer

# Certificates are looked at so often at most: a pool reads the state of every channel for each request.
_LOOK_EVERY_S = 1.0
# When a connection on which nothing was read is pinged, and for how long the reply may take.
KEEPALIVE_MS, REPLY_MS = 5_000, 3_000


def service_config(retryable: Sequence[tuple[str, str]], health: str = "") -> str:
    """gRPC's service config as JSON: round robin, health checks, retries on UNAVAILABLE for (service, method) pairs.

    Retries stop while most of them fail. `health` is the name to check (grpc.health.v1); a server that is NOT_SERVING
    gets no calls. gRPC retries a streaming call only while nothing was received.
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
    """Cancels a call on the wire when its caller is cancelled. OpenTelemetry's interceptor waits for it instead.

    Must be the last interceptor.
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
    max_message_bytes: int = 34 * 2**20,
    health: str = "",
    peer: Peer = PLAIN,
) -> grpc.aio.Channel:
    """A traced channel to HOST:PORT or any gRPC target name (`dns:///draft:50051`). Connects on first use.

    `health` is a service whose grpc.health.v1 status becomes part of the channel's state; empty for none.
    Raises PresiftError for unusable certificates. If the files change later, new calls use the new certificates.
    """
    traced = aio_client_interceptors(filter_=filters.negate(filters.health_check()))
    interceptors = [*traced, *peer.interceptors(), CancelOnCallerCancel()]
    options = [*_options(service_config(retryable, health), max_message_bytes), *peer.options()]
    if peer.tls is None:
        return grpc.aio.insecure_channel(address, interceptors=interceptors, options=options)

    def open_one(pems: TlsPems) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, channel_credentials(pems), options, interceptors=interceptors)

    return ReloadingChannel(peer.tls.watched(_LOOK_EVERY_S), open_one)


def _options(config: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # gRPC retries only calls that fit its retry buffer, by default 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # Detects a dead connection (half-open TCP) within 8 s, also during a long wait. Of a pool, `heartbeat.py` sees
        # to it that pings are rare.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", REPLY_MS),
        # For gRPC's own pings (bandwidth estimates): it sends no keepalive while one is open, by default for a minute.
        ("grpc.http2.ping_timeout_ms", 6_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Reconnect to a restarted peer within seconds, not after gRPC's default of two minutes.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Do not share a connection with an earlier channel to this address: that server may be stopping.
        ("grpc.use_local_subchannel_pool", 1),
        # `http_proxy` in the environment is for the outside world.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", config),
        *HARDENED,
    ]
