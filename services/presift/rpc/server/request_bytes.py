"""The bytes of requests, counted as they arrive: bounded as a sum, for the server and for each proven tenant.

They count until their call ends. A part of them is then in memory all the time, parsed or as a prompt, also while a
caller who reads slowly takes the answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from presift.core.errors import Overloaded
from presift.telemetry.metrics import count

FIELD = "received_bytes"
_RETRY_AFTER_S = 1.0


class RequestBytes:
    """`limit` for all calls, `share` for those of one tenant."""

    def __init__(self, limit: int, share: int) -> None:
        self._limit = limit
        self._share = share
        self.held = 0
        self._tenants = Counter[str]()
        self._calls: dict[asyncio.Task[Any], tuple[str | None, int]] = {}

    def add(self, task: asyncio.Task[Any], tenant: str | None, more: int) -> None:
        """Count `more` bytes of a call. Raises Overloaded; the call then keeps what it has."""
        if self.held + more > self._limit:
            raise _refusal(FIELD, self.held + more, self._limit)
        if tenant is not None and (would_be := self._tenants[tenant] + more) > self._share:
            raise _refusal(f"{FIELD} of the tenant", would_be, self._share)
        owner, held = self._calls.get(task, (tenant, 0))
        self._calls[task] = owner, held + more
        self.held += more
        if owner is not None:
            self._tenants[owner] += more

    def remove(self, task: asyncio.Task[Any]) -> None:
        """The call has ended."""
        tenant, held = self._calls.pop(task, (None, 0))
        self.held -= held
        if tenant is not None:
            self._tenants[tenant] -= held
            if not self._tenants[tenant]:
                del self._tenants[tenant]


def _refusal(field: str, would_be: int, limit: int) -> Overloaded:
    count("presift.received.refused", field=FIELD)
    return Overloaded(field, would_be, f"<= {limit}", _RETRY_AFTER_S)
