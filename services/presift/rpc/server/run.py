"""Runs a service: sets up logging and telemetry, serves on an event loop, returns the exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from presift.core.errors import PresiftError
from presift.rpc.settings import ServiceSettings
from presift.telemetry import logs, tracing
from presift.telemetry.loop_stalls import observed_loop
from presift.telemetry.metrics import count

S = TypeVar("S", bound=ServiceSettings)

log = logging.getLogger(__name__)

# Python's own is 5 ms.
_SWITCH_INTERVAL_S = 0.0005


def run(service: str, settings: S, serve: Callable[[S], Coroutine[Any, Any, bool]]) -> int:
    """0 if `serve` returns True (a clean drain); else 1. PresiftError is logged."""
    logs.set_up(settings.log_level, settings.log_format, lambda: count("presift.log.dropped"))
    try:
        with tracing.exported(service, settings.telemetry()), _responsive_loop():
            return 0 if asyncio.run(_measured(serve(settings))) else 1
    except PresiftError as error:
        log.error("%s", error)
        return 1


def freeze_loaded_objects() -> None:
    """Let garbage collections leave out what is in memory now, until `run` returns: one that looks at all modules stops
    the event loop for 0.1 s. To be called once the service has loaded everything, before it serves."""
    gc.collect()
    gc.freeze()


@contextmanager
def _responsive_loop() -> Iterator[None]:
    """Undo `freeze_loaded_objects` at the end. And let a thread that reads a large request give up Python's lock after
    `_SWITCH_INTERVAL_S`: a call wakes the event loop some twenty times, and waits for the lock each time."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.unfreeze()


async def _measured(serving: Coroutine[Any, Any, bool]) -> bool:
    async with observed_loop():
        return await serving
