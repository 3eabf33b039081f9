"""One worker thread owns the model; callers wait in line for it, and not too many of them.

Knows nothing of models or gRPC. All methods are called from one event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from presift.core.errors import DeadlineExceeded, DraftUnavailable, Overloaded
from presift.core.service_time import ServiceTime
from presift.draft.scorer import Cancel, Cancelled
from presift.telemetry.tracing import span

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A job's result and how long it waited for the worker, in milliseconds."""

    result: T
    queue_ms: float


class WorkQueue:
    """First come, first served. `max_queue` callers may wait beside the one that is served; 0 lets none wait."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="presift-draft")
        self._turn = asyncio.Lock()
        self._places = 0
        self._service_time = ServiceTime()
        self._served: Cancel | None = None
        self._is_closed = False

    @property
    def places_taken(self) -> int:
        """Callers that wait or are served."""
        return self._places

    async def run(self, job: Callable[[Cancel], T], timeout_s: float | None = None) -> Done[T]:
        """Run `job` on the worker when its turn comes. The caller's trace context goes along.

        A cancelled caller leaves the line at once, or tells the running job to stop; `timeout_s` does the same and
        raises DeadlineExceeded. Raises Overloaded if the line is full, DraftUnavailable once closed, and whatever
        `job` raises.
        """
        self._refuse_if_full()
        entered = time.monotonic()
        cancel = Cancel(None if timeout_s is None else entered + timeout_s)
        with self._place():
            with span("queue"):
                await self._wait_for_turn(timeout_s)
            queue_ms = (time.monotonic() - entered) * 1e3
            return Done(await self._work(job, cancel), queue_ms)

    def close(self) -> None:
        """Refuse callers from now on, stop the running job and wait until it has stopped."""
        self._is_closed = True
        if self._served is not None:
            self._served.cancel()
        self._worker.shutdown(wait=True)

    def _refuse_if_full(self) -> None:
        if self._is_closed:
            raise DraftUnavailable("the draft is shutting down")
        if self._places > self.max_queue:
            waiting = self._places - 1
            retry_after_s = self._service_time.retry_after_s(self._places)
            raise Overloaded("queue", waiting, f"<= {self.max_queue} waiting", retry_after_s)

    @contextmanager
    def _place(self) -> Iterator[None]:
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    async def _wait_for_turn(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while waiting for the draft") from None

    async def _work(self, job: Callable[[Cancel], T], cancel: Cancel) -> T:
        """Holds the turn until the thread is really done, even if the caller is gone by then."""
        context = contextvars.copy_context()
        try:
            running = asyncio.get_running_loop().run_in_executor(self._worker, context.run, self._timed, job, cancel)
        except RuntimeError:
            self._turn.release()
            raise DraftUnavailable("the draft is shutting down") from None
        self._served = cancel
        running.add_done_callback(self._finished)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel.cancel()
            raise
        except Cancelled:  # by `close`, while the caller is still there
            raise DraftUnavailable("the draft is shutting down") from None

    def _timed(self, job: Callable[[Cancel], T], cancel: Cancel) -> T:
        started = time.monotonic()
        cancel.check()
        result = job(cancel)
        self._service_time.observe(time.monotonic() - started)
        return result

    def _finished(self, running: asyncio.Future[T]) -> None:
        self._turn.release()
        if not running.cancelled():
            running.exception()  # marks it as seen: a caller that went away will not ask
