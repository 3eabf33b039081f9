"""Addresses: what can be said, and what DNS makes of a name."""

import asyncio
import socket

import pytest

from presift.core.errors import InvalidRequest
from presift.rpc.pool.resolver import DnsName, StaticAddresses, parse_addresses, resolve


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("draft:50052", StaticAddresses(("draft:50052",))),
        ("a:1, b:2,a:1", StaticAddresses(("a:1", "b:2"))),
        ("unix:/run/draft.sock", StaticAddresses(("unix:/run/draft.sock",))),
        ("dns:///draft:50052", DnsName("draft", 50052)),
        ("dns:///[::1]:50052", DnsName("::1", 50052)),
    ],
)
def test_what_can_be_said(text, where):
    assert parse_addresses("draft_address", text) == where


@pytest.mark.parametrize("text", ["", "a:1,,b:2", "dns:///draft", "dns:///:1", "dns:///a:1,b:2", "dns:///a:x"])
def test_what_cannot(text):
    with pytest.raises(InvalidRequest) as refusal:
        parse_addresses("draft_address", text)
    assert refusal.value.field == "draft_address"


async def test_every_record_is_a_replica(monkeypatch):
    async def getaddrinfo(host, port, **_):
        assert (host, port) == ("draft", 7)
        v4 = [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]
        return [*v4, (socket.AF_INET6, 1, 6, "", ("fd00::1", port, 0, 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await resolve(DnsName("draft", 7)) == ("10.0.0.1:7", "10.0.0.2:7", "[fd00::1]:7")


async def test_the_systems_own_resolver_is_asked():
    assert "127.0.0.1:7" in await resolve(DnsName("localhost", 7))
