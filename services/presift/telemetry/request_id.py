"""The id of the current HTTP request, for log lines and spans."""

from __future__ import annotations

from contextvars import ContextVar

# Empty outside an HTTP request.
request_id: ContextVar[str] = ContextVar("presift_request_id", default="")
