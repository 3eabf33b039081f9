"""A queue that is fair between tenants by the work that each was given. Pure: no clock, no tasks.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). Each tenant has a virtual time up to which it was served, and
the tenant with the least is next. A new tenant starts at the virtual time of the last one served: a thousand requests
of one tenant delay another's only request for as long as the first of them takes, not all of them. A tenant without
requests keeps its virtual time until nothing is queued or served: else a large request, sent whenever the one before
has ended, would be next each time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Waiter(Protocol):
    """A queued request. `work_tokens` >= 1 is what its tenant is charged."""

    tenant: str
    work_tokens: int


T = TypeVar("T", bound=Waiter)

# Tenants without requests whose virtual times are kept: callers who may claim any tenant must not fill the memory.
MAX_IDLE = 4096


@dataclass(slots=True)
class _TenantQueue(Generic[T]):
    """One tenant's waiters, its virtual time, and the number of its requests that are being served."""

    waiting: deque[T] = field(default_factory=deque)
    time: int = 0
    served: int = 0


class FairQueue(Generic[T]):
    """First come, first served within a tenant."""

    def __init__(self) -> None:
        self._queues: dict[str, _TenantQueue[T]] = {}
        self._idle_times: OrderedDict[str, int] = OrderedDict()
        self._time = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def tenants(self) -> int:
        """The number of tenants with requests that wait or are being served."""
        return len(self._queues)

    @property
    def waiting_tenants(self) -> int:
        """The number of tenants with requests that wait."""
        return sum(1 for queue in self._queues.values() if queue.waiting)

    def push(self, waiter: T) -> None:
        """Append it to its tenant's queue."""
        if waiter.tenant not in self._queues:
            self._queues[waiter.tenant] = _TenantQueue(time=self._idle_times.pop(waiter.tenant, 0))
        self._queues[waiter.tenant].waiting.append(waiter)
        self._length += 1

    def pop(self) -> T:
        """The next one to serve; call `finish` when it has ended. Raises IndexError if the queue is empty."""
        if not self._length:
            raise IndexError("the queue is empty")
        queue = min((each for each in self._queues.values() if each.waiting), key=self._start)
        waiter = queue.waiting.popleft()
        self._time = self._start(queue)
        queue.time = self._time + waiter.work_tokens
        queue.served += 1
        self._length -= 1
        return waiter

    def remove(self, waiter: T) -> None:
        """Take it out of the queue. Raises ValueError if it is not in it."""
        self._queues[waiter.tenant].waiting.remove(waiter)
        self._length -= 1
        self._drop_if_idle(waiter.tenant)

    def finish(self, waiter: T) -> None:
        """A popped one has ended."""
        self._queues[waiter.tenant].served -= 1
        self._drop_if_idle(waiter.tenant)

    def share(self, tenant: str, measure: Callable[[T], int]) -> int:
        """The sum of `measure` over a tenant's waiters."""
        queue = self._queues.get(tenant)
        return 0 if queue is None else sum(map(measure, queue.waiting))

    def last_of_largest(self, measure: Callable[[T], int]) -> T:
        """The newest waiter of the tenant with the largest share. Raises ValueError if the queue is empty."""
        queues = (queue for queue in self._queues.values() if queue.waiting)
        return max(queues, key=lambda queue: sum(map(measure, queue.waiting))).waiting[-1]

    def _start(self, queue: _TenantQueue[T]) -> int:
        return max(self._time, queue.time)

    def _drop_if_idle(self, tenant: str) -> None:
        queue = self._queues[tenant]
        if queue.waiting or queue.served:
            return
        del self._queues[tenant]
        if not self._queues:
            self._idle_times.clear()
        elif queue.time > self._time:
            self._idle_times[tenant] = queue.time
            if len(self._idle_times) > MAX_IDLE:
                self._idle_times.popitem(last=False)
