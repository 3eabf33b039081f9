"""Admission: how many requests are in work, how many wait for that, and what those may hold; fair between tenants.

What is in work here is at most what the services behind can take, so that waiting is done here, where it is fair.
The guard's shadows and calibration are no callers: they do not come through here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from presift.core.errors import DeadlineExceeded, InvalidRequest, Overloaded
from presift.core.service_time import ServiceTime
from presift.orchestrator.admission.fair_queue import FairQueue
from presift.orchestrator.admission.request_cost import RequestCost
from presift.telemetry.metrics import count, record


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Requests in work, requests that wait, and the bytes that these hold. Raises InvalidRequest."""

    max_running: int = 64
    max_waiting: int = 1024
    max_waiting_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise InvalidRequest("max_running", self.max_running, ">= 1")


class Slot:
    """A place among the requests in work; it is given back once, by whoever is the first to do so."""

    def __init__(self, waited_s: float, give_back: Callable[[], None]) -> None:
        self.waited_s = waited_s
        self._give_back: Callable[[], None] | None = give_back

    def close(self) -> None:
        """The work is done, though its caller may not have read all of the answer."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class _Waiter:
    """One request; `turn` is done when it may go on, and failed when its place in the queue is needed by others."""

    def __init__(self, tenant: str, load: RequestCost) -> None:
        self.tenant = tenant
        self.work_tokens = load.tokens
        self.held_bytes = load.held_bytes
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Admission:
    """All methods are called from one event loop. `clock` in seconds."""

    def __init__(self, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = QueueLimits() if limits is None else limits
        self._clock = clock
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._service_time = ServiceTime()
        self.running = 0
        self.waiting_bytes = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._queue)

    @property
    def waiting_tenants(self) -> int:
        """Tenants that these are of."""
        return self._queue.waiting_tenants

    @asynccontextmanager
    async def place(self, tenant: str, load: RequestCost, left_s: float | None) -> AsyncIterator[Slot]:
        """Wait for a place and hold it until the block ends, or until it was closed.

        Raises Overloaded where too much waits already: at once, or later, where a tenant of which less waits needs the
        room. Raises DeadlineExceeded after `left_s` seconds.
        """
        ticket, came = _Waiter(tenant, load), self._clock()
        self._enter(ticket)
        try:
            await self._turn_of(ticket, left_s)
        except BaseException:
            self._leave(ticket)
            raise
        began = self._clock()
        record("presift.admission.wait", began - came)
        place = Slot(began - came, lambda: self._end(ticket, began))
        try:
            yield place
        finally:
            place.close()

    def _enter(self, ticket: _Waiter) -> None:
        if self.running >= self._limits.max_running:
            self._make_room(ticket)
        self._wait(ticket)
        self._go_on()

    async def _turn_of(self, ticket: _Waiter, left_s: float | None) -> None:
        if ticket.turn.done():  # nobody else was there
            return
        try:
            async with asyncio.timeout(left_s):
                # Shielded: a turn that is cancelled with its waiter would still stand in the queue when it is popped.
                await asyncio.shield(ticket.turn)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the request waited for its turn") from None

    def _leave(self, ticket: _Waiter) -> None:
        """Before its turn, or in the very moment of it."""
        if not ticket.turn.done():
            self._unqueue(ticket)
        elif ticket.turn.exception() is None:
            self._end(ticket, None)

    def _wait(self, ticket: _Waiter) -> None:
        self._queue.push(ticket)
        self.waiting_bytes += ticket.held_bytes

    def _unqueue(self, ticket: _Waiter) -> None:
        self._queue.remove(ticket)
        self.waiting_bytes -= ticket.held_bytes

    def _end(self, ticket: _Waiter, began: float | None) -> None:
        self.running -= 1
        self._queue.served(ticket)
        if began is not None:
            self._service_time.observe(self._clock() - began)
        self._go_on()

    def _go_on(self) -> None:
        while self.running < self._limits.max_running and len(self._queue):
            ticket = self._queue.pop()
            self.waiting_bytes -= ticket.held_bytes
            self.running += 1
            ticket.turn.set_result(None)

    def _make_room(self, ticket: _Waiter) -> None:
        """Raise Overloaded unless it fits, or does after those of whom more waits have given way: the newest first."""
        limits, given_way = self._limits, list[tuple[_Waiter, Overloaded]]()
        try:
            self._make_room_in("waiting_requests", ticket, lambda _: 1, limits.max_waiting, given_way)
            self._make_room_in(
                "waiting_bytes", ticket, lambda each: each.held_bytes, limits.max_waiting_bytes, given_way
            )
        except Overloaded as error:
            _count(error)
            for each, _ in reversed(given_way):  # for nothing: they were the newest of their tenants, and are again
                self._wait(each)
            raise
        for each, refusal in given_way:
            _count(refusal)
            each.turn.set_exception(refusal)

    def _make_room_in(
        self,
        field: str,
        ticket: _Waiter,
        measure: Callable[[_Waiter], int],
        limit: int,
        given_way: list[tuple[_Waiter, Overloaded]],
    ) -> None:
        needed = measure(ticket)
        while (held := self._held(field)) + needed > limit:
            own = self._queue.share(ticket.tenant, measure) + needed
            last = self._queue.last_of_largest(measure) if self.waiting and needed <= limit else None
            if last is None or self._queue.share(last.tenant, measure) <= own:
                raise self._overloaded(field, held + needed, limit)
            self._unqueue(last)
            given_way.append((last, self._overloaded(field, held + needed, limit)))

    def _held(self, field: str) -> int:
        return self.waiting if field == "waiting_requests" else self.waiting_bytes

    def _overloaded(self, field: str, would_be: int, limit: int) -> Overloaded:
        # Places come free at the rate at which requests in work end.
        retry_after_s = self._service_time.retry_after_s(self.waiting + 1, self._limits.max_running)
        return Overloaded(field, would_be, f"<= {limit}", retry_after_s)


def _count(refusal: Overloaded) -> None:
    count("presift.admission.refused", field=refusal.field)
