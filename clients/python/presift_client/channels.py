"""Channel options: gRPC's own retries where the contract says they are safe, keepalive and message size."""

from __future__ import annotations

import json

SERVICE = "presift.v1.OrchestratorService"
# gRPC retries a stream only while nothing was received: presift's first message is the decision, so no answer repeats.
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def options(max_message_bytes: int) -> list[tuple[str, str | int]]:
    """For grpc.insecure_channel and grpc.aio.insecure_channel."""
    config = {"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": _RETRY}]}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
