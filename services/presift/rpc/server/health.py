"""The health service (grpc.health.v1), whose watches do not depend on each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

from grpc_health.v1 import health, health_pb2


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """That of grpc_health forgets all watches of a name when one of them ends: the others learn of no change any more.

    So an orchestrator that left, or anybody who may connect, could hide from the others that a target is loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches = Counter[str]()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        name = request.service
        condition = self._server_watchers[name]
        self._watches[name] += 1
        try:
            await super().Watch(request, context)
        finally:  # without an await after the deletion, so that no change comes between
            self._watches[name] -= 1
            if self._watches[name]:
                self._server_watchers[name] = condition
            else:
                del self._watches[name]

    async def _set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        # Before the watches are waited for: one that begins meanwhile reads the new status (grpc/grpc#43403).
        self._server_status[service] = status
        await super()._set(service, status)
