"""Tasks that outlive the request that starts them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


def start_detached(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start a task in an empty context. In a copy of the caller's, all that it does would belong to the trace of the
    request that happened to start it."""
    return asyncio.create_task(work, name=name, context=Context())


def retrieve_error(ended: asyncio.Future[Any]) -> None:
    """Mark the error of a task as retrieved, if it has one. For work whose callers may all be cancelled before it ends:
    asyncio logs an error that nobody awaits."""
    if not ended.cancelled():
        ended.exception()
