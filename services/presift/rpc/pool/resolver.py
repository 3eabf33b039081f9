"""Addresses: where the replicas of a service are: a list, or a DNS name whose every record is one."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from presift.core.errors import InvalidRequest

_DNS = "dns:///"


@dataclass(frozen=True, slots=True)
class StaticAddresses:
    """Replicas that are said: HOST:PORT, or any other gRPC target name."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DnsName:
    """Replicas that are the A and AAAA records of a name: a headless Kubernetes service, a compose service."""

    host: str
    port: int


Addresses = StaticAddresses | DnsName


def parse_addresses(setting: str, text: str) -> Addresses:
    """HOST:PORT, several of them with commas between, or dns:///HOST:PORT. Raises InvalidRequest, naming `setting`."""
    if text.startswith(_DNS):
        host, _, port = text.removeprefix(_DNS).rpartition(":")
        if not host or not port.isdecimal() or "," in text:
            raise InvalidRequest(setting, text, "dns:///HOST:PORT")
        return DnsName(host.strip("[]"), int(port))
    addresses = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(addresses):
        raise InvalidRequest(setting, text, "HOST:PORT, a comma list of them, or dns:///HOST:PORT")
    return StaticAddresses(addresses)


async def resolve(named: DnsName) -> tuple[str, ...]:
    """HOST:PORT of every record, in order. Raises OSError where the name has none, or nobody can be asked."""
    # In a thread: the system's resolver blocks, for seconds where a name server is away.
    found = await asyncio.get_running_loop().getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM)
    return tuple(sorted({_address(str(entry[4][0]), named.port) for entry in found}))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
