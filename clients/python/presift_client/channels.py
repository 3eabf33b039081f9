"""Channel options and call metadata: retries, keepalive, message size, TLS, tenant and API key."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

import grpc

TENANT_KEY = "presift-tenant"
SERVICE = "presift.v1.OrchestratorService"
# gRPC retries a stream only while nothing was received. The first message is the decision, so no answer is repeated.
# A service that stops may cancel a call that arrives in that moment.
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """PEM files: `ca` is the authority to trust (None: the public ones); `cert` and `key` are for mutual TLS.

    `name_override` is the name that the service's certificate must have, if it differs from the address.
    Raises ValueError for a `cert` without a `key` or a `key` without a `cert`.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    name_override: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key must be given together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError, naming the file, if a file cannot be read."""
        ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


def metadata_of(tenant: str | None, api_key: str | None = None) -> tuple[tuple[str, str], ...]:
    """The metadata of every call. The service checks both values.

    Raises ValueError for a value that gRPC cannot send; the message never contains the key.
    """
    metadata: tuple[tuple[str, str], ...] = ()
    if tenant is not None:
        if not (tenant.isascii() and tenant.isprintable()):
            raise ValueError(f"tenant is {tenant!r}; it must be 1-64 characters of A-Z a-z 0-9 . _ -")
        metadata += ((TENANT_KEY, tenant),)
    if api_key is not None:
        if not api_key or not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise ValueError("the api_key must consist of printable ASCII characters without spaces")
        metadata += (("authorization", f"Bearer {api_key}"),)
    return metadata


def channel_options(address: str, max_message_bytes: int, tls: TlsOptions | None = None) -> list[tuple[str, str | int]]:
    """The gRPC options of a channel to `address`."""
    config = {"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": _RETRY}]}
    name = [("grpc.ssl_target_name_override", tls.name_override)] if tls and tls.name_override else []
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # gRPC can only retry what it has buffered; its default of 256 KiB is too small for long prompts.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # A service that disappears without closing the connection is detected within 8 s.
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 6_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # `http_proxy` in the environment cannot mean this machine.
        *([("grpc.enable_http_proxy", 0)] if is_loopback(address) else []),
        *name,
    ]


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT, or a gRPC name of it such as `dns:///HOST:PORT`, is on this machine."""
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
