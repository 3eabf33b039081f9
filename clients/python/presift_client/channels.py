"""What every call has: gRPC's own retries where the contract says they are safe, keepalive, message size, tenant."""

from __future__ import annotations

import json

TENANT_KEY = "presift-tenant"
SERVICE = "presift.v1.OrchestratorService"
# gRPC retries a stream only while nothing was received: presift's first message is the decision, so no answer repeats.
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def metadata_of(tenant: str | None) -> tuple[tuple[str, str], ...]:
    """The service checks the name; raises ValueError only for what gRPC cannot send."""
    if tenant is None:
        return ()
    if not (tenant.isascii() and tenant.isprintable()):
        raise ValueError(f"tenant is {tenant!r}; it must be 1-64 of A-Z a-z 0-9 . _ -")
    return ((TENANT_KEY, tenant),)


def options(max_message_bytes: int) -> list[tuple[str, str | int]]:
    """For grpc.insecure_channel and grpc.aio.insecure_channel."""
    config = {"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": _RETRY}]}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # A service that is gone without a word is found within 8 s.
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 6_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
