"""Large input is worked on in another thread."""

import asyncio
import threading

import pytest

from presift.rpc.large_input import LARGE_BYTES, in_thread_if_large


@pytest.mark.parametrize(("size", "in_loop"), [(0, True), (LARGE_BYTES - 1, True), (LARGE_BYTES, False)])
async def test_the_size_decides_where_the_work_is_done(size, in_loop):
    assert (await in_thread_if_large(size, threading.current_thread) is threading.main_thread()) == in_loop


async def test_an_error_of_the_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        await in_thread_if_large(LARGE_BYTES, lambda: 1 / 0)


async def test_a_cancelled_call_lasts_until_its_thread_has_ended() -> None:
    """Or its bytes would no longer count while the thread still holds them."""
    goes_on, is_done = threading.Event(), threading.Event()

    def work() -> None:
        goes_on.wait(10)
        is_done.set()
        raise ValueError("nobody sees it")

    call = asyncio.create_task(in_thread_if_large(LARGE_BYTES, work))
    await asyncio.sleep(0)
    for _ in range(2):  # by its deadline, and by its caller who leaves
        call.cancel()
        await asyncio.sleep(0.05)
        assert not call.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert is_done.is_set()
