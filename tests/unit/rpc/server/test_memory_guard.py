"""Calls whose message is incomplete end while the process is short of memory; others do not."""

import asyncio
from contextlib import suppress

import pytest

from presift.core.errors import DeadlineExceeded, Overloaded
from presift.rpc.server import memory_guard
from presift.rpc.server.memory_guard import MemoryGuard, container_limit, private_bytes

LIMIT = 1000


async def wait(guard, arrived, within_s=20.0):
    async with guard.receiving(within_s):
        await arrived.wait()


async def test_late_messages_end_when_memory_is_short():
    held = [LIMIT]
    guard, arrived = MemoryGuard(LIMIT, lambda: held[0]), asyncio.Event()
    late = [asyncio.create_task(wait(guard, arrived)) for _ in range(3)]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in late)
    held[0] = LIMIT + 1
    async with asyncio.timeout(60):
        errors = await asyncio.gather(*late, return_exceptions=True)
    for error in errors:
        assert isinstance(error, Overloaded) and error.retry_after_s > 0
        assert (error.field, error.value, error.limit) == ("memory", LIMIT + 1, f"<= {LIMIT} bytes")
    # One that is complete at once passes meanwhile.
    arrived.set()
    for _ in range(10):
        await wait(guard, arrived)
        await asyncio.sleep(0.02)
    assert not guard._waiting


async def test_a_message_whose_time_ends_meanwhile_stops_nothing():
    """Its timeout can no longer be moved."""
    guard, held = MemoryGuard(LIMIT, lambda: LIMIT + 1), []
    async with asyncio.timeout(0.05) as ended:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        guard._waiting[ended] = 0.0
        guard._look()
        held.append(guard._timer)
    assert held[0] is not None
    guard._timer.cancel()


async def test_without_a_limit_only_time_ends_a_message():
    guard = MemoryGuard(None, lambda: 2**50)
    with pytest.raises(DeadlineExceeded, match=r"did not arrive within 0.3 s"):
        await wait(guard, asyncio.Event(), 0.3)


async def test_a_cancelled_call_is_forgotten():
    guard = MemoryGuard(LIMIT, lambda: 2**50)
    waiting = asyncio.create_task(wait(guard, asyncio.Event()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not guard._waiting


@pytest.mark.parametrize(("text", "limit"), [("1000\n", 900), ("max\n", None), ("9223372036854771712\n", None)])
def test_the_containers_limit_is_read(tmp_path, monkeypatch, text, limit):
    (tmp_path / "memory.max").write_text(text)
    paths = (str(tmp_path / "absent"), str(tmp_path / "memory.max"))
    monkeypatch.setattr(memory_guard, "_CONTAINER_LIMITS", paths)
    assert container_limit() == limit


def test_the_memory_of_this_process_is_measured():
    before = private_bytes()
    held = bytearray(b"x") * 2**26
    assert before > 2**20 and private_bytes() - before > 2**25
    del held


async def test_what_it_compares_and_what_it_ends_is_measured(monkeypatch):
    counted = []
    monkeypatch.setattr(memory_guard, "count", lambda name, **attributes: counted.append((name, attributes)))
    guard = MemoryGuard(LIMIT, lambda: LIMIT + 1)
    with pytest.raises(Overloaded):
        await wait(guard, asyncio.Event())
    assert counted == [("presift.received.refused", {"field": "memory"})]
    shown = {each.name: [value for value, _ in each.read()] for each in guard.gauges()}
    assert shown == {"presift.memory.used.bytes": [LIMIT + 1], "presift.memory.limit.bytes": [LIMIT]}
    assert [list(each.read()) for each in MemoryGuard(None, lambda: 0).gauges()] == [[], []]
