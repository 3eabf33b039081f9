"""Runs background work, one item at a time, only while no caller waits for a first token.

A new request interrupts the running item, which is retried once when the orchestrator is idle again. Items are dropped
if the queue is full. Nothing here affects callers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from presift.core.errors import PresiftError
from presift.orchestrator.domain.background import background
from presift.rpc.tasks import start_detached

T = TypeVar("T")

ATTEMPTS = 2
QUEUE_LENGTH = 8

log = logging.getLogger(__name__)


class ShadowOutcome(StrEnum):
    """The result of an item; the values are labels of a metric."""

    DONE = "compared"
    FAILED = "failed"  # an error or a timeout
    INTERRUPTED = "interrupted"  # by new requests, in every attempt
    DROPPED = "dropped"  # the queue was full


class IdleGate:
    """Idle while no caller waits for a first token."""

    def __init__(self) -> None:
        self._waiting_callers: set[object] = set()
        self._idle, self._busy = asyncio.Event(), asyncio.Event()
        self._idle.set()

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """Busy until the block ends or the yielded function is called, whichever is first."""
        caller = object()
        self._waiting_callers.add(caller)
        self._update()
        try:
            yield partial(self._remove, caller)
        finally:
            self._remove(caller)

    async def wait_idle(self) -> None:
        await self._idle.wait()

    async def wait_busy(self) -> None:
        await self._busy.wait()

    def _remove(self, caller: object) -> None:
        if caller in self._waiting_callers:
            self._waiting_callers.remove(caller)
            self._update()

    def _update(self) -> None:
        set_now, clear_now = (self._busy, self._idle) if self._waiting_callers else (self._idle, self._busy)
        clear_now.clear()
        set_now.set()


class ShadowQueue(Generic[T]):
    """`work` processes an item in at most `timeout_s`; `on_outcome` receives each item's result."""

    def __init__(
        self,
        idle_gate: IdleGate,
        work: Callable[[T], Awaitable[None]],
        on_outcome: Callable[[T, ShadowOutcome], None],
        timeout_s: float = 120.0,
    ) -> None:
        self._idle_gate = idle_gate
        self._work = work
        self._on_outcome = on_outcome
        self._timeout_s = timeout_s
        self._items: asyncio.Queue[T] = asyncio.Queue(QUEUE_LENGTH)
        self._worker: asyncio.Task[None] | None = None

    def offer(self, item: T) -> None:
        """Queue the item; drop it if the queue is full."""
        if self._worker is None:
            self._worker = start_detached(self._run(), "shadows")
        try:
            self._items.put_nowait(item)
        except asyncio.QueueFull:
            self._on_outcome(item, ShadowOutcome.DROPPED)

    async def aclose(self) -> None:
        """Stop immediately."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait((self._worker,))

    async def _run(self) -> None:
        while True:
            item = await self._items.get()
            outcome = ShadowOutcome.INTERRUPTED
            for _ in range(ATTEMPTS):
                await self._idle_gate.wait_idle()
                outcome = await self._attempt(item)
                if outcome is not ShadowOutcome.INTERRUPTED:
                    break
            self._on_outcome(item, outcome)

    async def _attempt(self, item: T) -> ShadowOutcome:
        async with background(self._process(item)) as working, background(self._idle_gate.wait_busy()) as interrupted:
            await asyncio.wait((working, interrupted), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            timed_out = not interrupted.done()
        if working.cancelled():
            return ShadowOutcome.FAILED if timed_out else ShadowOutcome.INTERRUPTED
        return working.result()

    async def _process(self, item: T) -> ShadowOutcome:
        try:
            await self._work(item)
        except Exception as error:  # any error: no caller depends on this work
            log.warning("shadow failed: %s", error.message if isinstance(error, PresiftError) else type(error).__name__)
            return ShadowOutcome.FAILED
        return ShadowOutcome.DONE
