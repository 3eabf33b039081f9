"""The bytes of requests: a bound for all and for each tenant, until their calls have ended."""

import asyncio

import pytest

from presift.core.errors import Overloaded
from presift.rpc.server import request_bytes
from presift.rpc.server.request_bytes import RequestBytes


class Call:
    """A task that ends when it is told to."""

    def __init__(self):
        self.ended = asyncio.Event()
        self.task = asyncio.create_task(self.ended.wait())


async def test_all_are_bounded_and_each_tenant(monkeypatch):
    counted = []
    monkeypatch.setattr(request_bytes, "count", lambda name, **attributes: counted.append((name, attributes)))
    counts, calls = RequestBytes(100, 40), [Call() for _ in range(5)]
    counts.add(calls[0].task, "acme", 30)
    counts.add(calls[0].task, "acme", 10)
    with pytest.raises(Overloaded) as refused:
        counts.add(calls[1].task, "acme", 1)
    error = refused.value
    assert (error.field, error.value, error.limit) == ("received_bytes of the tenant", 41, "<= 40")
    assert error.retry_after_s > 0
    counts.add(calls[2].task, "other", 40)
    counts.add(calls[3].task, None, 20)
    with pytest.raises(Overloaded) as refused:
        counts.add(calls[4].task, None, 1)
    assert (refused.value.field, refused.value.value, refused.value.limit) == ("received_bytes", 101, "<= 100")
    assert counts.held == 100 and counted == [("presift.received.refused", {"field": "received_bytes"})] * 2
    for each in calls:
        counts.remove(each.task)
        each.ended.set()
    assert counts.held == 0 and not counts._tenants and not counts._calls
    counts.add(calls[1].task, "acme", 40)
