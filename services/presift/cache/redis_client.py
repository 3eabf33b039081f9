"""A Redis or Valkey client with timeouts and a circuit breaker. Every failure becomes CacheUnavailable.

The URL contains the password: it is never kept, shown or logged. Only the types of errors are logged, because a server
may echo its input ("unknown command 'AUTH', with args beginning with: ...").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from presift.cache.store import CacheLimits, Outcome
from presift.cache.timeout import loop_aware_timeout
from presift.core.errors import InvalidRequest
from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker

_log = logging.getLogger(__name__)

T = TypeVar("T")


class CacheUnavailable(Exception):
    """The server gave no usable answer. Callers treat it as a miss."""

    def __init__(self, outcome: Outcome, is_wrong_type: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.is_wrong_type = is_wrong_type  # the key holds a list, hash or the like, which presift never writes


class RedisClient:
    """Commands to the server at `url` (redis://, rediss:// or unix://). Connects at the first command.

    TLS files and client certificates are query parameters: `?ssl_ca_certs=/path&ssl_certfile=...&ssl_keyfile=...`.
    Raises InvalidRequest if the URL cannot be read.
    """

    def __init__(self, url: str, limits: CacheLimits) -> None:
        self._pool = _pool(url, limits)
        self._client = Redis.from_pool(self._pool)
        self._breaker = CircuitBreaker(limits.rest_after_failures, limits.rest_s)
        self._is_available = True

    @property
    def is_available(self) -> bool:
        """Whether the server carried out the last command; True before the first."""
        return self._is_available

    @property
    def pool(self) -> BlockingConnectionPool:
        """For a library that has its own client; its calls must go through `attempt`."""
        return self._pool

    async def execute(self, *command: str | bytes | int, timeout_s: float) -> object:
        """The server's reply within `timeout_s`, not counting delays of this process. Raises CacheUnavailable."""

        async def call() -> object:
            reply: object = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
            return reply

        return await self.attempt(call, timeout_s)

    async def attempt(self, call: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """The result of `call` within `timeout_s`, not counting delays of this process. Raises CacheUnavailable."""
        began_s = self._breaker.begin()
        if began_s is None:
            raise CacheUnavailable(Outcome.SKIPPED)
        try:
            async with loop_aware_timeout(timeout_s):
                reply = await call()
        except ResponseError as error:  # the server refused, but it works
            self._record_success()
            is_wrong_type = str(error).startswith("WRONGTYPE")
            # Any other refusal may last: the server is full, a replica, or part of a cluster.
            self._is_available = is_wrong_type
            _log.debug("cache command refused: %s", type(error).__name__)
            raise CacheUnavailable(Outcome.ERROR, is_wrong_type) from None
        except Exception as error:  # whatever the client raises for a broken server or network is a miss
            self._record_failure(error, began_s)
            timed_out = isinstance(error, (TimeoutError, RedisTimeoutError))
            raise CacheUnavailable(Outcome.TIMEOUT if timed_out else Outcome.ERROR) from None
        self._record_success()
        return reply

    async def aclose(self) -> None:
        """Close every connection, for at most a second."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await self._client.aclose()

    def _record_success(self) -> None:
        self._is_available = True
        self._breaker.record_success()

    def _record_failure(self, error: Exception, began_s: float) -> None:
        self._is_available = False
        was_closed = self._breaker.state is BreakerState.CLOSED
        self._breaker.record_failure(began_s)
        opens = was_closed and self._breaker.state is not BreakerState.CLOSED
        _log.log(logging.WARNING if opens else logging.DEBUG, "cache unreachable: %s", type(error).__name__)


def _pool(url: str, limits: CacheLimits) -> BlockingConnectionPool:
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except (ValueError, TypeError):  # its message may quote part of the password
        raise InvalidRequest("cache_url", "unreadable", "redis://, rediss:// or unix:// URL") from None
    options |= {
        "max_connections": limits.max_connections,
        # `attempt` has the timeout. With its own timeouts redis-py sends under asyncio.wait_for, which before Python
        # 3.12 swallows a cancellation during the send: a timeout or a cancelled caller would be ignored for seconds.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "timeout": None,
        "retry": Retry(NoBackoff(), 0),  # a second try would not fit the timeout
        "protocol": 2,  # no HELLO, no push messages: works on any Redis 6+ and Valkey, saves a round trip
        "driver_info": None,  # no CLIENT SETINFO either
        "decode_responses": False,
    }
    return BlockingConnectionPool(**options)
