"""Admission: bounds how many requests run and how many wait, fairly between tenants.

Set the limit to what the services behind can run, so that requests wait here, where the queue is fair. Shadow requests
and calibration are not callers' requests: they do not pass through here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from presift.core.fair_queue import FairQueue
from presift.core.service_time import ServiceTime
from presift.orchestrator.admission.request_cost import RequestCost
from presift.rpc.deadline import Deadline
from presift.telemetry.metrics import count, record


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Requests that run, requests that wait, and the bytes that all of them hold. Raises InvalidRequest."""

    max_running: int = 64
    max_waiting: int = 1024
    max_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise InvalidRequest("max_running", self.max_running, ">= 1")


class Slot:
    """The right to run one request."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Release the slot when the work is done, even if the caller has not read all of the answer. Idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release()


class _Waiter:
    """A request in the queue. `admitted` is done when it may run, and fails when it is evicted."""

    def __init__(self, tenant: str, cost: RequestCost) -> None:
        self.tenant = tenant
        self.work_tokens = cost.tokens
        self.held_bytes = cost.held_bytes
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Admission:
    """Call all methods from one event loop. `clock` in seconds."""

    def __init__(self, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = QueueLimits() if limits is None else limits
        self._clock = clock
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._service_time = ServiceTime()
        self.running = 0
        self.running_bytes = self.waiting_bytes = 0

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._queue)

    @property
    def waiting_tenants(self) -> int:
        """The number of tenants that have requests in the queue."""
        return self._queue.waiting_tenants

    @asynccontextmanager
    async def slot(self, tenant: str, cost: RequestCost, deadline: Deadline) -> AsyncIterator[Slot]:
        """Wait for a slot and hold it until the block ends or the slot is closed.

        Raises Overloaded if the queue is full: immediately, or later when evicted in favour of a tenant with less
        queued. Raises DeadlineExceeded.
        """
        deadline.check()
        waiter, arrived = _Waiter(tenant, cost), self._clock()
        self._enter(waiter)
        try:
            await self._wait(waiter, deadline)
        except BaseException:
            self._withdraw(waiter)
            raise
        started = self._clock()
        record("presift.admission.wait", started - arrived)
        slot = Slot(lambda: self._end(waiter, started))
        try:
            yield slot
        finally:
            slot.close()

    def _enter(self, waiter: _Waiter) -> None:
        self._make_room(waiter)
        self._push(waiter)
        self._admit_next()

    async def _wait(self, waiter: _Waiter, deadline: Deadline) -> None:
        if waiter.admitted.done():  # the queue was empty
            return
        try:
            async with deadline.timeout():
                # Shielded: a future that is cancelled with its task would still be in the queue when it is popped.
                await asyncio.shield(waiter.admitted)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the request was queued") from None

    def _withdraw(self, waiter: _Waiter) -> None:
        """The request ends before it runs, possibly just after it was admitted."""
        if not waiter.admitted.done():
            self._remove(waiter)
        elif waiter.admitted.exception() is None:
            self._end(waiter, None)

    def _push(self, waiter: _Waiter) -> None:
        self._queue.push(waiter)
        self.waiting_bytes += waiter.held_bytes

    def _remove(self, waiter: _Waiter) -> None:
        self._queue.remove(waiter)
        self.waiting_bytes -= waiter.held_bytes

    def _end(self, waiter: _Waiter, started: float | None) -> None:
        self.running -= 1
        self.running_bytes -= waiter.held_bytes
        self._queue.finish(waiter)
        if started is not None:
            self._service_time.observe(self._clock() - started)
        self._admit_next()

    def _admit_next(self) -> None:
        while self.running < self._limits.max_running and len(self._queue):
            waiter = self._queue.pop()
            self.waiting_bytes -= waiter.held_bytes
            self.running += 1
            self.running_bytes += waiter.held_bytes
            waiter.admitted.set_result(None)

    def _make_room(self, waiter: _Waiter) -> None:
        """Evict the newest waiters of tenants with more queued until this one fits. Raises Overloaded if it cannot."""
        limits, evicted = self._limits, list[tuple[_Waiter, Overloaded]]()
        try:
            if self.running >= limits.max_running:
                self._evict("waiting_requests", waiter, lambda _: 1, limits.max_waiting, evicted)
            if self.running:  # a request that is larger than the limit may run alone
                self._evict("request_bytes", waiter, lambda each: each.held_bytes, limits.max_bytes, evicted)
        except Overloaded as error:
            _count(error)
            for each, _ in reversed(evicted):  # in vain: each was the newest of its tenant, and is again
                self._push(each)
            raise
        for each, overloaded in evicted:
            _count(overloaded)
            each.admitted.set_exception(overloaded)

    def _evict(
        self,
        field: str,
        waiter: _Waiter,
        measure: Callable[[_Waiter], int],
        limit: int,
        evicted: list[tuple[_Waiter, Overloaded]],
    ) -> None:
        needed = measure(waiter)
        while (held := self._held(field)) + needed > limit:
            own = self._queue.share(waiter.tenant, measure) + needed
            last = self._queue.last_of_largest(measure) if self.waiting and needed <= limit else None
            if last is None or self._queue.share(last.tenant, measure) <= own:
                raise self._overloaded(field, held + needed, limit)
            self._remove(last)
            evicted.append((last, self._overloaded(field, held + needed, limit)))

    def _held(self, field: str) -> int:
        return self.waiting if field == "waiting_requests" else self.running_bytes + self.waiting_bytes

    def _overloaded(self, field: str, would_be: int, limit: int) -> Overloaded:
        # Slots come free at the rate at which running requests end.
        retry_after_s = self._service_time.retry_after_s(self.waiting + 1, self._limits.max_running)
        return Overloaded(field, would_be, f"<= {limit}", retry_after_s)


def _count(error: Overloaded) -> None:
    count("presift.admission.refused", field=error.field)
