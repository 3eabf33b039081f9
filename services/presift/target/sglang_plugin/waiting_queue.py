"""SGLang's queue of waiting requests, which may hold thousands: how to read and change it in few walks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class QueuedIds:
    """The ids of the requests that wait in SGLang's queue when it is first asked. It then walks the queue, once."""

    def __init__(self, queue: list[Any]) -> None:
        self._queue = queue
        self._ids: set[str] | None = None

    def __contains__(self, request_id: object) -> bool:
        if self._ids is None:
            self._ids = {request.rid for request in self._queue}
        return request_id in self._ids


def withdraw(scheduler: Any, requests: Collection[Any]) -> None:
    """Remove the plugin's own `requests` from the queue, in one walk, and abort the one in chunked prefill."""
    if not requests:
        return
    gone = {id(request) for request in requests}
    scheduler.waiting_queue[:] = [each for each in scheduler.waiting_queue if id(each) not in gone]
    if id(scheduler.chunked_req) in gone:
        scheduler._pending_chunked_abort_req = scheduler.chunked_req
    # One that is in neither place runs its last chunk, and then ends.
