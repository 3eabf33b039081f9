"""Prefilling: the target reads a prompt into its radix cache while the draft still works on it.

A help, never a condition: where it fails, Generate reads the prompt itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from presift.cache.single_flight import SingleFlight
from presift.core.errors import PresiftError
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Target
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.planning.salted_key import salted_key
from presift.orchestrator.prompt.tokenizer import Tokenized
from presift.telemetry.metrics import count

T = TypeVar("T")

log = logging.getLogger(__name__)


class Prefiller:
    """Simultaneous requests of one salt for one prompt cost one reading; it is aborted once nobody waits for it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._flights: SingleFlight[None] = SingleFlight()

    async def read(self, tokens: Tokenized, at: ReplicaRef = ANY_REPLICA) -> float:
        """Milliseconds until the target had read the prompt; 0 where it could not."""
        started, key = time.perf_counter(), _key(tokens, at)
        try:
            await self._flights.run(key, lambda: self._prefill(tokens, at))
        except Exception as error:  # whatever it is: Generate will read the prompt, or say why it cannot
            count("presift.prefill.failures")
            reason = error.message if isinstance(error, PresiftError) else type(error).__name__
            log.warning("not read while the draft worked: %s", reason)
            return 0.0
        return (time.perf_counter() - started) * 1000

    async def read_after(self, event: asyncio.Event, tokens: Tokenized, at: ReplicaRef = ANY_REPLICA) -> float:
        """`read`, as soon as the event is set."""
        await event.wait()
        return await self.read(tokens, at)

    async def join(self, tokens: Tokenized, at: ReplicaRef = ANY_REPLICA) -> float:
        """Wait for another request's reading of the same prompt, if one is under way; milliseconds."""
        return await self.read(tokens, at) if self._flights.is_under_way(_key(tokens, at)) else 0.0

    async def _prefill(self, tokens: Tokenized, at: ReplicaRef) -> None:
        with stage("prefill"):
            # No time limit of its own: it lives as long as somebody waits, and everybody has a deadline.
            await self._target.prefill(tokens.ids, tokens.salt, None, at)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that does not outlive the block: what is not done by its end is cancelled and waited for.

    Not a TaskGroup: that would wrap what the block raises into a group.
    """
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


def _key(tokens: Tokenized, at: ReplicaRef) -> str:
    return f"{salted_key(tokens.ids, tokens.salt)}@{at.replica}"
