"""The commands of one Redis or Valkey server: that of a URL, or the primary that Sentinels name."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from presift.cache.redis_url import RedisAddress
from presift.cache.sentinel import Primary, PrimaryConnection, PrimarySslConnection
from presift.cache.store import CacheLimits

# Codes of a server that is not, or no longer, the primary. After a failover its name leads to another one.
NOT_PRIMARY = frozenset(("READONLY", "LOADING", "MASTERDOWN"))


class OneServer:
    """Connects at the first command."""

    def __init__(self, address: RedisAddress, limits: CacheLimits) -> None:
        self._primary = Primary(address) if address.sentinels else None
        self._pool = _pool(address, self._primary, limits)
        self._client = Redis.from_pool(self._pool)
        self._rest_s = limits.rest_s
        self._reconnected_s = -math.inf

    async def send(self, *command: str | bytes | int) -> object:
        """The server's reply. Raises redis-py's errors."""
        reply: object = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        return reply

    async def on_each_primary(self, check: Callable[[], Awaitable[None]]) -> None:
        """Run `check`."""
        await check()

    async def recover(self, code: str, timeout_s: float) -> None:
        """A command failed with this code of the server, empty if there was none. If the server is not the primary,
        close the connections, so that the next command looks its name up; at most every `rest_s`."""
        now_s = time.monotonic()
        if code not in NOT_PRIMARY or now_s - self._reconnected_s < self._rest_s:
            return
        self._reconnected_s = now_s
        with contextlib.suppress(Exception):
            async with asyncio.timeout(timeout_s):
                # Those in use are closed when they are released.
                await self._pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
                await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close every connection, for at most a second or two."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await self._client.aclose()
        if self._primary is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._primary.aclose()


def _pool(address: RedisAddress, primary: Primary | None, limits: CacheLimits) -> BlockingConnectionPool:
    options = address.options | {
        "max_connections": limits.max_connections,
        # RedisClient has the timeout. With its own timeouts redis-py sends under asyncio.wait_for, which before Python
        # 3.12 swallows a cancellation during the send: a timeout or a cancelled caller would be ignored for seconds.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "timeout": None,
        "retry": Retry(NoBackoff(), 0),  # a second try would not fit the timeout
        "protocol": 2,  # no HELLO, no push messages: works on any Redis 6+ and Valkey, saves a round trip
        "driver_info": None,  # no CLIENT SETINFO either
        "decode_responses": False,
    }
    if primary is not None:
        is_tls = "connection_class" in address.options
        options |= {"primary": primary, "connection_class": PrimarySslConnection if is_tls else PrimaryConnection}
    return BlockingConnectionPool(**options)
