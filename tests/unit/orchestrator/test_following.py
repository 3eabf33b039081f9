"""Health follows the target: who can reach none is not to be called."""

import asyncio

import pytest

from presift.orchestrator import __main__ as service


class Models:
    has_target_now = True


class Server:
    def __init__(self):
        self.told = []

    async def set_serving(self, serving):
        self.told.append(serving)


@pytest.fixture
async def following(monkeypatch):
    monkeypatch.setattr(service, "_CHECK_EVERY_S", 0.005)
    models, server = Models(), Server()
    task = asyncio.create_task(service._follow_target(models, server))
    yield models, server
    task.cancel()


async def told(server, expected):
    async with asyncio.timeout(10):
        while server.told != expected:
            await asyncio.sleep(0.002)


async def test_not_serving_without_a_target_and_serving_again_with_one(following, caplog):
    models, server = following
    await asyncio.sleep(0.03)
    assert server.told == []
    models.has_target_now = False
    await told(server, [False])
    models.has_target_now = True
    await told(server, [False, True])
    assert "no target is reachable" in caplog.text and "a target is reachable again" in caplog.text


async def test_one_look_is_no_outage(monkeypatch):
    looks = iter([False, False, *[True] * 50])
    models, server = type("Once", (), {"has_target_now": property(lambda _: next(looks))})(), Server()
    monkeypatch.setattr(service, "_CHECK_EVERY_S", 0.0)
    with pytest.raises((StopIteration, RuntimeError)):
        await service._follow_target(models, server)
    assert server.told == []
