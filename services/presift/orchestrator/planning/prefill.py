"""Prefill: the target reads a prompt into its radix cache while the draft works on it.

An optimisation only: if it fails, Generate reads the prompt itself.
"""

from __future__ import annotations

import asyncio
import logging
import time

from presift.cache.single_flight import SingleFlight
from presift.core.errors import PresiftError
from presift.orchestrator.domain.ports import ANY_REPLICA, ReplicaRef, Target
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.domain.stages import stage
from presift.orchestrator.planning.salted_key import salted_key
from presift.telemetry.metrics import count
from presift.telemetry.repeated_warnings import RepeatedWarnings

log = logging.getLogger(__name__)


class Prefiller:
    """Concurrent requests of one salt for one prompt cost one prefill; it is aborted when no request waits for it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._flights: SingleFlight[None] = SingleFlight()
        self._warnings = RepeatedWarnings(log)

    async def read(self, tokens: TokenizedPrompt, replica: ReplicaRef = ANY_REPLICA) -> float:
        """Milliseconds until the target had read the prompt; 0 if it failed."""
        started, key = time.perf_counter(), _key(tokens, replica)
        try:
            await self._flights.run(key, lambda: self._prefill(tokens, replica))
        except Exception as error:  # of any kind: Generate reads the prompt, or raises the reason
            count("presift.prefill.failures")
            reason = error.message if isinstance(error, PresiftError) else type(error).__name__
            self._warnings.warn("prefill", f"prefill failed: {reason}")
            return 0.0
        return (time.perf_counter() - started) * 1000

    async def read_after(
        self, event: asyncio.Event, tokens: TokenizedPrompt, replica: ReplicaRef = ANY_REPLICA
    ) -> float:
        """`read`, as soon as the event is set."""
        await event.wait()
        return await self.read(tokens, replica)

    async def join(self, tokens: TokenizedPrompt, replica: ReplicaRef = ANY_REPLICA) -> float:
        """Wait for another request's prefill of the same prompt, if one is running; milliseconds."""
        return await self.read(tokens, replica) if self._flights.is_under_way(_key(tokens, replica)) else 0.0

    async def _prefill(self, tokens: TokenizedPrompt, replica: ReplicaRef) -> None:
        with stage("prefill"):
            # No time limit of its own: it lasts as long as a request waits, and every request has a deadline.
            await self._target.prefill(tokens.ids, tokens.salt, replica)


def _key(tokens: TokenizedPrompt, replica: ReplicaRef) -> str:
    return f"{salted_key(tokens.ids, tokens.salt)}@{replica.name}"
