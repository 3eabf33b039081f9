"""A fair queue: whose turn it is among tenants that wait, by the work that each was given. Pure: no clock, no tasks.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). Each tenant has a virtual time up to which it was served; the
least is next. Who comes anew begins at the time of whoever was served last: a thousand requests of one tenant stand
before another's only one for as long as the first of them takes, not all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Waiter(Protocol):
    """What waits. `work_tokens` >= 1 is what its tenant is charged."""

    tenant: str
    work_tokens: int


T = TypeVar("T", bound=Waiter)


@dataclass(slots=True)
class _TenantQueue(Generic[T]):
    """One tenant's tickets, its virtual time, and how many of its requests are served now."""

    waiting: deque[T] = field(default_factory=deque)
    time: int = 0
    served: int = 0


class FairQueue(Generic[T]):
    """First come, first served within a tenant. A tenant without any request is forgotten, its debt included."""

    def __init__(self) -> None:
        self._lines: dict[str, _TenantQueue[T]] = {}
        self._time = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def tenants(self) -> int:
        """How many tenants are known."""
        return len(self._lines)

    @property
    def waiting_tenants(self) -> int:
        """How many of them have something that waits."""
        return sum(1 for line in self._lines.values() if line.waiting)

    def push(self, ticket: T) -> None:
        """Let it wait behind its tenant's others."""
        self._lines.setdefault(ticket.tenant, _TenantQueue()).waiting.append(ticket)
        self._length += 1

    def pop(self) -> T:
        """The next to be served; tell its end by `served`. Raises IndexError where nothing waits."""
        if not self._length:
            raise IndexError("nothing waits")
        lines = [line for line in self._lines.values() if line.waiting]
        line = min(lines, key=self._turn)
        ticket = line.waiting.popleft()
        self._time = self._turn(line)
        line.time = self._time + ticket.work_tokens
        line.served += 1
        self._length -= 1
        return ticket

    def remove(self, ticket: T) -> None:
        """It waits no longer. Raises ValueError if it did not."""
        line = self._lines[ticket.tenant]
        line.waiting.remove(ticket)
        self._length -= 1
        self._forget_if_gone(ticket.tenant)

    def served(self, ticket: T) -> None:
        """What was popped has ended."""
        self._lines[ticket.tenant].served -= 1
        self._forget_if_gone(ticket.tenant)

    def share(self, tenant: str, measure: Callable[[T], int]) -> int:
        """The sum of `measure` over what waits of a tenant."""
        line = self._lines.get(tenant)
        return 0 if line is None else sum(map(measure, line.waiting))

    def last_of_largest(self, measure: Callable[[T], int]) -> T:
        """The newest ticket of the tenant of which the most waits. Raises ValueError where nothing waits."""
        lines = (line for line in self._lines.values() if line.waiting)
        return max(lines, key=lambda line: sum(map(measure, line.waiting))).waiting[-1]

    def _turn(self, line: _TenantQueue[T]) -> int:
        return max(self._time, line.time)

    def _forget_if_gone(self, tenant: str) -> None:
        line = self._lines[tenant]
        if not line.waiting and not line.served:
            del self._lines[tenant]
