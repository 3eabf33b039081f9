"""Shadows: work in the background, one piece at a time, and only while no caller waits for a first token.

A caller who comes ends the piece that is under way; it is tried once more in the next calm. What there is no room for
is dropped. Nothing that happens here reaches a caller.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from presift.core.errors import PresiftError
from presift.orchestrator.planning.prefill import background

T = TypeVar("T")

ATTEMPTS = 2
_QUEUE_LENGTH = 8

log = logging.getLogger(__name__)


class ShadowOutcome(StrEnum):
    """What became of a piece of work."""

    DONE = "compared"
    FAILED = "failed"  # an error, or it took too long
    INTERRUPTED = "interrupted"  # callers came, each time
    DROPPED = "dropped"  # too much was waiting


class IdleGate:
    """IdleGate is while no caller waits for a first token."""

    def __init__(self) -> None:
        self._callers: set[object] = set()
        self._calm, self._stir = asyncio.Event(), asyncio.Event()
        self._calm.set()

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """A caller waits until the block ends, or until what it gives was called."""
        caller = object()
        self._callers.add(caller)
        self._tell()
        try:
            yield partial(self._leave, caller)
        finally:
            self._leave(caller)

    async def come(self) -> None:
        """Wait for calm."""
        await self._calm.wait()

    async def end(self) -> None:
        """Wait for a caller."""
        await self._stir.wait()

    def _leave(self, caller: object) -> None:
        if caller in self._callers:
            self._callers.remove(caller)
            self._tell()

    def _tell(self) -> None:
        (set_now, clear_now) = (self._stir, self._calm) if self._callers else (self._calm, self._stir)
        clear_now.clear()
        set_now.set()


class ShadowQueue(Generic[T]):
    """`work` does a piece, `told` hears what became of each; a piece takes at most `timeout_s`."""

    def __init__(
        self,
        calm: IdleGate,
        work: Callable[[T], Awaitable[None]],
        told: Callable[[T, ShadowOutcome], None],
        timeout_s: float = 120.0,
    ) -> None:
        self._calm = calm
        self._work = work
        self._told = told
        self._timeout_s = timeout_s
        self._waiting: asyncio.Queue[T] = asyncio.Queue(_QUEUE_LENGTH)
        self._worker: asyncio.Task[None] | None = None

    def offer(self, piece: T) -> None:
        """Do it when it is calm."""
        if self._worker is None:
            # In a context of its own: it must not go on for ever in the trace of the first request.
            self._worker = asyncio.create_task(self._go_on(), name="shadows", context=contextvars.Context())
        try:
            self._waiting.put_nowait(piece)
        except asyncio.QueueFull:
            self._told(piece, ShadowOutcome.DROPPED)

    async def aclose(self) -> None:
        """Stop at once."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait((self._worker,))

    async def _go_on(self) -> None:
        while True:
            piece = await self._waiting.get()
            outcome = ShadowOutcome.INTERRUPTED
            for _ in range(ATTEMPTS):
                await self._calm.come()
                outcome = await self._attempt(piece)
                if outcome is not ShadowOutcome.INTERRUPTED:
                    break
            self._told(piece, outcome)

    async def _attempt(self, piece: T) -> ShadowOutcome:
        async with background(self._done(piece)) as working, background(self._calm.end()) as stirring:
            await asyncio.wait((working, stirring), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            is_late = not stirring.done()
        if working.cancelled():
            return ShadowOutcome.FAILED if is_late else ShadowOutcome.INTERRUPTED
        return working.result()

    async def _done(self, piece: T) -> ShadowOutcome:
        try:
            await self._work(piece)
        except Exception as error:  # whatever it is: no caller asked for it
            log.warning("shadow failed: %s", error.message if isinstance(error, PresiftError) else type(error).__name__)
            return ShadowOutcome.FAILED
        return ShadowOutcome.DONE
