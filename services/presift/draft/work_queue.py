"""A bounded queue in front of the one worker thread that runs the model.

All methods are called from one event loop.
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
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.telemetry.tracing import span

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobResult(Generic[T]):
    """A job's result and how long it waited for the worker, in milliseconds."""

    result: T
    queue_ms: float


class WorkQueue:
    """First in, first out. At most `max_queue` jobs wait in addition to the running one; with 0 no job waits."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="presift-draft")
        self._worker_free = asyncio.Lock()
        self._in_flight = 0
        self._service_time = ServiceTime()
        self._running: Cancel | None = None
        self._is_closed = False

    @property
    def in_flight(self) -> int:
        """Waiting and running jobs."""
        return self._in_flight

    async def run(self, job: Callable[[Cancel], T], deadline: Deadline = NO_DEADLINE) -> JobResult[T]:
        """Run `job` on the worker thread, in the caller's trace context, after the jobs before it.

        If the caller is cancelled or the deadline passes, a waiting job leaves the queue and a running job is asked
        to stop. Raises DeadlineExceeded, Overloaded if the queue is full, DraftUnavailable after
        `close`, and what `job` raises.
        """
        self._refuse_if_full()
        entered = time.monotonic()
        cancel = Cancel(deadline)
        with self._counted():
            with span("queue"):
                await self._wait_for_worker(deadline)
            queue_ms = (time.monotonic() - entered) * 1e3
            return JobResult(await self._work(job, cancel), queue_ms)

    def close(self) -> None:
        """Refuse new jobs, stop the running job and wait until it has stopped."""
        self._is_closed = True
        if self._running is not None:
            self._running.cancel()
        self._worker.shutdown(wait=True)

    def _refuse_if_full(self) -> None:
        if self._is_closed:
            raise DraftUnavailable("the draft is shutting down")
        if self._in_flight > self.max_queue:
            waiting = self._in_flight - 1
            retry_after_s = self._service_time.retry_after_s(self._in_flight)
            raise Overloaded("queue", waiting, f"<= {self.max_queue} waiting", retry_after_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _wait_for_worker(self, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(deadline.remaining_s):
                await self._worker_free.acquire()
        except TimeoutError:
            raise DeadlineExceeded("deadline exceeded while waiting in the draft's queue") from None

    async def _work(self, job: Callable[[Cancel], T], cancel: Cancel) -> T:
        """Run the job and free the worker when the thread is done, even if the caller was cancelled before."""
        context = contextvars.copy_context()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._worker, context.run, self._timed, job, cancel)
        except RuntimeError:
            self._worker_free.release()
            raise DraftUnavailable("the draft is shutting down") from None
        self._running = cancel
        future.add_done_callback(self._finished)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel.cancel()
            raise
        except Cancelled:  # by `close`
            raise DraftUnavailable("the draft is shutting down") from None

    def _timed(self, job: Callable[[Cancel], T], cancel: Cancel) -> T:
        started = time.monotonic()
        cancel.check()
        result = job(cancel)
        self._service_time.observe(time.monotonic() - started)
        return result

    def _finished(self, future: asyncio.Future[T]) -> None:
        self._worker_free.release()
        if not future.cancelled():
            future.exception()  # marks it as retrieved: a cancelled caller does not await it
