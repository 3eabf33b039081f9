"""Measures the memory that a block of code allocates and keeps."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_bytes() -> Iterator[Callable[[], int]]:
    """Yields a function that returns, after the block, the bytes that the block allocated and that still live."""
    gc.collect()
    tracemalloc.start()
    held = 0
    try:
        yield lambda: held
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
