"""Measures the memory that presift allocates in a block of code and keeps."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CODE = ("*/services/presift/*", "*/cachetools/*", "*/numpy/*", "*/dataclasses.py", "<string>")


@contextmanager
def held_bytes() -> Iterator[Callable[[], int]]:
    """Yields a function that returns, after the block, the bytes that were allocated in it by presift's code or by the
    libraries of its memories, and that still live. What other tests' threads and late imports allocate does not count.
    """
    gc.collect()
    tracemalloc.start()
    held = 0
    try:
        yield lambda: held
        gc.collect()
        found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, each) for each in _CODE])
        held = sum(trace.size for trace in found.traces)
    finally:
        tracemalloc.stop()
