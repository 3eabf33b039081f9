"""Large input is worked on in another thread."""

import threading

import pytest

from presift.rpc.large_input import LARGE_BYTES, in_thread_if_large


@pytest.mark.parametrize(("size", "in_loop"), [(0, True), (LARGE_BYTES - 1, True), (LARGE_BYTES, False)])
async def test_the_size_decides_where_the_work_is_done(size, in_loop):
    assert (await in_thread_if_large(size, threading.current_thread) is threading.main_thread()) == in_loop


async def test_an_error_of_the_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        await in_thread_if_large(LARGE_BYTES, lambda: 1 / 0)
