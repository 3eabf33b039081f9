"""A Redis or Valkey client with timeouts and a circuit breaker. Every failure becomes CacheUnavailable.

The URL contains the password: it is never kept, shown or logged. Of an error only the code or the type is logged,
because a server may echo its input ("ERR unknown command 'AUTH', with args beginning with: ...").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from presift.cache.redis_url import RedisAddress, read_redis_url
from presift.cache.sentinel import Primary, PrimaryConnection, PrimarySslConnection
from presift.cache.store import CacheLimits, Outcome
from presift.cache.timeout import loop_aware_timeout
from presift.cache.trouble import QUIET_S, Trouble
from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker

_log = logging.getLogger(__name__)

T = TypeVar("T")

# The code of a key that holds a list, hash or the like, which presift never writes.
WRONG_TYPE = "WRONGTYPE"
# Codes of a server that is not, or no longer, the primary. After a failover its name leads to another one.
_NOT_PRIMARY = frozenset(("READONLY", "LOADING", "MASTERDOWN"))
_CODE = re.compile(r"[A-Z]{2,32}")


class CacheUnavailable(Exception):
    """The server gave no usable answer. Callers treat it as a miss.

    `code` is the first word of the server's error, such as NOPERM; empty if the server sent none.
    """

    def __init__(self, outcome: Outcome, code: str = "") -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.code = code


class RedisClient:
    """Commands to the server at `url` (redis://, rediss:// or unix://), or to the primary that Sentinels name
    (redis+sentinel://, rediss+sentinel://). Connects at the first command.

    TLS files and client certificates are query parameters: `?ssl_ca_certs=/path&ssl_certfile=...&ssl_keyfile=...`.
    Changes of state are logged once, at `log_level`: refusals, no answer, and the end of both.
    Raises InvalidRequest if the URL cannot be read.
    """

    def __init__(self, url: str, limits: CacheLimits, log_level: int = logging.WARNING) -> None:
        address = read_redis_url(url)
        self._primary = Primary(address) if address.sentinels else None
        self._pool = _pool(address, self._primary, limits)
        self._client = Redis.from_pool(self._pool)
        self._breaker = CircuitBreaker(limits.rest_after_failures, limits.rest_s)
        self._trouble = Trouble()
        self._log_level = log_level
        self._is_available = True
        self._rest_s = limits.rest_s
        self._reconnected_s = -math.inf

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
            code = _error_code(error)
            self._breaker.record_success()
            # Any other refusal may last: the server is full, a replica, or part of a cluster.
            self._is_available = code == WRONG_TYPE
            if code != WRONG_TYPE and self._trouble.failed(code):
                _log.log(self._log_level, "the cache server refuses commands: %s", code)
            if code in _NOT_PRIMARY:
                await self._reconnect(timeout_s)
            raise CacheUnavailable(Outcome.ERROR, code) from None
        except Exception as error:  # whatever the client raises for a broken server or network is a miss
            code = _error_code(error)
            self._record_failure(error, code, began_s)
            if code in _NOT_PRIMARY:
                await self._reconnect(timeout_s)
            timed_out = isinstance(error, (TimeoutError, RedisTimeoutError))
            raise CacheUnavailable(Outcome.TIMEOUT if timed_out else Outcome.ERROR, code) from None
        self._record_success()
        return reply

    async def mode(self, timeout_s: float) -> str:
        """How the server runs: standalone, cluster or sentinel; empty if it does not say."""
        try:
            async with loop_aware_timeout(timeout_s):
                reply: object = await self._client.execute_command("HELLO", 2)  # type: ignore[no-untyped-call]
        except Exception:  # a user without the right to ask, a proxy, or no answer
            return ""
        pairs = reply if isinstance(reply, list) else []
        return next(
            (value.decode() for name, value in zip(pairs[::2], pairs[1::2], strict=False) if name == b"mode"), ""
        )

    async def aclose(self) -> None:
        """Close every connection, for at most a second or two."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await self._client.aclose()
        if self._primary is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._primary.aclose()

    async def _reconnect(self, timeout_s: float) -> None:
        """Close the connections, so that the next command looks the server's name up; at most every `rest_s`."""
        now_s = time.monotonic()
        if now_s - self._reconnected_s < self._rest_s:
            return
        self._reconnected_s = now_s
        with contextlib.suppress(Exception):
            async with asyncio.timeout(timeout_s):
                # Those in use are closed when they are released.
                await self._pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
                await self._pool.disconnect(inuse_connections=False)

    def _record_success(self) -> None:
        self._is_available = True
        self._breaker.record_success()
        if self._trouble.succeeded():
            _log.log(self._log_level, "the cache server works again: no failure for %.0f s", QUIET_S)

    def _record_failure(self, error: Exception, code: str, began_s: float) -> None:
        self._is_available = False
        self._breaker.record_failure(began_s)
        is_new = self._breaker.state is not BreakerState.CLOSED and self._trouble.failed(code)
        level = self._log_level if is_new else logging.DEBUG
        _log.log(level, "the cache server does not answer: %s", code or type(error.__cause__ or error).__name__)


def _error_code(error: Exception) -> str:
    """The first word of the server's error; empty if the server sent none. The rest may quote what presift sent."""
    if isinstance(error.__cause__, RedisError):
        error = error.__cause__  # of the login, for instance
    if not isinstance(error, RedisError):
        return ""
    if str(error).startswith("ACL failure in script"):
        return "NOPERM"  # of a command of the script, sent as ERR
    code = error.status_code or str(error).partition(" ")[0]
    if _CODE.fullmatch(code):
        return code
    return "ERR" if isinstance(error, ResponseError) else ""


def _pool(address: RedisAddress, primary: Primary | None, limits: CacheLimits) -> BlockingConnectionPool:
    options = address.options | {
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
    if primary is not None:
        is_tls = "connection_class" in address.options
        options |= {"primary": primary, "connection_class": PrimarySslConnection if is_tls else PrimaryConnection}
    return BlockingConnectionPool(**options)
