"""Whose time a timeout counts."""

import asyncio
import time

import pytest

from presift.cache import timeout as module
from presift.cache.timeout import loop_aware_timeout


async def test_what_is_in_time_is_left_alone():
    async with loop_aware_timeout(5.0):
        await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_takes_too_long_is_ended():
    with pytest.raises(TimeoutError):
        async with loop_aware_timeout(0.02):
            await asyncio.Event().wait()


async def test_an_error_of_the_block_is_its_own():
    with pytest.raises(KeyError):
        async with loop_aware_timeout(0.02):
            raise KeyError


async def test_a_cancellation_from_outside_stays_one():
    async def wait():
        async with loop_aware_timeout(5.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_that_came_while_we_were_busy_counts():
    server = await asyncio.start_server(lambda reader, writer: writer.write(b"here"), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, time.sleep, 0.3)  # a burst of work, ten times as long as the patience
    async with loop_aware_timeout(0.03):
        await reader.readexactly(4)
        loop.call_soon(time.sleep, 0.3)
        await asyncio.sleep(0.02)
    writer.close()
    server.close()


async def test_every_wait_has_a_limit(monkeypatch):
    monkeypatch.setattr(module, "LOOP_DELAY_LIMIT_S", 0.3)
    loop = asyncio.get_running_loop()

    def always_late():
        nonlocal busy
        time.sleep(0.05)
        busy = loop.call_soon(always_late)

    busy = loop.call_soon(always_late)
    with pytest.raises(TimeoutError):
        async with loop_aware_timeout(0.02):
            await asyncio.Event().wait()
    busy.cancel()
