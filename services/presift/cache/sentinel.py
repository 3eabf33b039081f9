"""Connections to the primary that Redis Sentinels name, so that a failover needs no new URL.

redis-py asks the Sentinels. Its own pool for them is not used: it refuses instead of waiting when all connections are
in use, and a Sentinel that hangs would use up each command's timeout, so that the next one is never asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from presift.cache.redis_url import RedisAddress
from presift.rpc.tasks import retrieve_error, start_detached

# The longest wait for one Sentinel, before the next one is asked.
_SENTINEL_TIMEOUT_S = 0.5


class Primary:
    """Finds the primary of the service of `address`."""

    def __init__(self, address: RedisAddress) -> None:
        options: dict[str, Any] = address.sentinel_options | {
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "driver_info": None,
        }
        self._sentinel = Sentinel(address.sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._service = address.service
        self._asking: asyncio.Task[tuple[str, int]] | None = None

    async def find(self) -> tuple[str, int]:
        """Its host and port now. Raises redis-py's errors, MasterNotFoundError if no Sentinel names one.

        Asks in a task that callers share and that outlives their timeouts: a first Sentinel that does not answer is
        passed over then, and the one that answered is asked first from then on.
        """
        if self._asking is None or self._asking.done():
            asking = self._sentinel.discover_master(self._service)
            self._asking = start_detached(asking, "ask the Sentinels")
            self._asking.add_done_callback(retrieve_error)
        return await asyncio.shield(self._asking)

    async def aclose(self) -> None:
        """Close the connections to the Sentinels."""
        if self._asking is not None:
            self._asking.cancel()
        await self._sentinel.aclose()


class PrimaryConnection(Connection):
    """Asks for the primary's address whenever it connects."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary

    async def _connect(self) -> None:
        self.host, self.port = await self._primary.find()
        await super()._connect()  # type: ignore[no-untyped-call]


class PrimarySslConnection(PrimaryConnection, SSLConnection):
    """The same over TLS. The server's certificate must be for the address that the Sentinels name."""
