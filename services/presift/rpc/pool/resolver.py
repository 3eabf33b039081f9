"""Where the replicas of a service are: a list of addresses, or a DNS name with one record per replica."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from presift.core.errors import InvalidRequest

_DNS = "dns:///"


@dataclass(frozen=True, slots=True)
class StaticAddresses:
    """A fixed list: HOST:PORT, or any other gRPC target name."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DnsName:
    """The A and AAAA records of a name, such as a headless Kubernetes service or a compose service."""

    host: str
    port: int


Addresses = StaticAddresses | DnsName


def parse_addresses(setting: str, text: str) -> Addresses:
    """Parse HOST:PORT, a comma-separated list of them, or dns:///HOST:PORT. Raises InvalidRequest, naming `setting`."""
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
    """HOST:PORT of every record, sorted. Raises OSError if there is no record or no name server answers."""
    # In a thread: the system's resolver blocks, for seconds if a name server does not answer.
    found = await asyncio.get_running_loop().getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM)
    return tuple(sorted({_address(str(entry[4][0]), named.port) for entry in found}))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
