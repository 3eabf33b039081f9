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
from presift.core.fair_queue import FairQueue
from presift.core.service_time import ServiceTime
from presift.draft.scorer import Cancel, Cancelled
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.rpc.tasks import retrieve_error
from presift.telemetry.tracing import span

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobResult(Generic[T]):
    """A job's result and how long it waited for the worker, in milliseconds."""

    result: T
    queue_ms: float


class _Waiter:
    """A queued job. `admitted` is done when the worker is free for it, and fails when the job is evicted."""

    def __init__(self, tenant: str, work_tokens: int) -> None:
        self.tenant = tenant
        self.work_tokens = work_tokens
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class WorkQueue:
    """Fair between tenants; first in, first out within one. At most `max_queue` jobs wait in addition to the running
    one; with 0 no job waits."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="presift-draft")
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._admitted: _Waiter | None = None
        self._in_flight = 0
        self._service_time = ServiceTime()
        self._running: Cancel | None = None
        self._is_closed = False

    @property
    def in_flight(self) -> int:
        """Waiting and running jobs."""
        return self._in_flight

    async def run(
        self, job: Callable[[Cancel], T], deadline: Deadline = NO_DEADLINE, *, tenant: str = "", work_tokens: int = 1
    ) -> JobResult[T]:
        """Run `job` on the worker thread, in the caller's trace context. Its tenant is charged `work_tokens` (>= 1).

        If the caller is cancelled or the deadline passes, a waiting job leaves the queue and a running job is asked
        to stop. Raises DeadlineExceeded, DraftUnavailable after `close`, and what `job` raises. Raises Overloaded if
        the queue is full: immediately, or later when evicted in favour of a tenant with less queued.
        """
        if self._is_closed:
            raise DraftUnavailable("the draft is shutting down")
        waiter, entered, cancel = _Waiter(tenant, work_tokens), time.monotonic(), Cancel(deadline)
        self._enter(waiter)
        with self._counted():
            with span("queue"):
                await self._wait(waiter, deadline)
            queue_ms = (time.monotonic() - entered) * 1e3
            return JobResult(await self._work(job, cancel, waiter), queue_ms)

    def close(self) -> None:
        """Refuse new jobs, stop the running job and wait until it has stopped."""
        self._is_closed = True
        if self._running is not None:
            self._running.cancel()
        self._worker.shutdown(wait=True)

    def _enter(self, waiter: _Waiter) -> None:
        if self._admitted is not None and len(self._queue) >= self.max_queue:
            self._evict_for(waiter)
        self._queue.push(waiter)
        self._admit_next()

    def _evict_for(self, waiter: _Waiter) -> None:
        """Evict the newest job of the tenant with the most jobs. Raises Overloaded if that is the waiter's."""
        waiting, retry_after_s = len(self._queue), self._service_time.retry_after_s(len(self._queue) + 1)
        overloaded = Overloaded("queue", waiting, f"<= {self.max_queue} waiting", retry_after_s)
        last = self._queue.last_of_largest(_one) if waiting else None
        if last is None or self._queue.share(last.tenant, _one) <= self._queue.share(waiter.tenant, _one) + 1:
            raise overloaded
        self._queue.remove(last)
        last.admitted.set_exception(overloaded)

    def _admit_next(self) -> None:
        if self._admitted is None and len(self._queue):
            self._admitted = self._queue.pop()
            self._admitted.admitted.set_result(None)

    def _release(self, waiter: _Waiter) -> None:
        self._queue.finish(waiter)
        self._admitted = None
        self._admit_next()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _wait(self, waiter: _Waiter, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(deadline.remaining_s):
                # Shielded: a future that is cancelled with its task would still be in the queue when it is popped.
                await asyncio.shield(waiter.admitted)
        except BaseException as error:
            self._withdraw(waiter)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("deadline exceeded while waiting in the draft's queue") from None
            raise

    def _withdraw(self, waiter: _Waiter) -> None:
        """The job ends before it runs, possibly just after it was admitted."""
        if not waiter.admitted.done():
            self._queue.remove(waiter)
        elif waiter.admitted.exception() is None:
            self._release(waiter)

    async def _work(self, job: Callable[[Cancel], T], cancel: Cancel, waiter: _Waiter) -> T:
        """Run the job and free the worker when the thread is done, even if the caller was cancelled before."""
        context = contextvars.copy_context()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._worker, context.run, self._timed, job, cancel)
        except RuntimeError:
            self._release(waiter)
            raise DraftUnavailable("the draft is shutting down") from None
        self._running = cancel

        def finished(done: asyncio.Future[T]) -> None:
            self._release(waiter)
            retrieve_error(done)

        future.add_done_callback(finished)
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


def _one(_: _Waiter) -> int:
    return 1
