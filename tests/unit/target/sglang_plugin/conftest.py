"""Fixtures for the tests of the plugin."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Python's garbage collector is off: what lives on is referenced, if only by a cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
