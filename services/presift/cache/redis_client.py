"""A Redis or Valkey client with timeouts and a circuit breaker. Every failure becomes CacheUnavailable.

The URL contains the password: it is never kept, shown or logged. Of an error only the code or the type is logged,
because a server may echo its input ("ERR unknown command 'AUTH', with args beginning with: ...").
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisClusterException, RedisError, ResponseError, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from presift.cache.cluster import Cluster
from presift.cache.one_server import OneServer
from presift.cache.ongoing_failures import QUIET_S, OngoingFailures
from presift.cache.redis_url import read_redis_url
from presift.cache.store import CacheLimits, Outcome
from presift.cache.timeout import loop_aware_timeout
from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker

_log = logging.getLogger(__name__)

T = TypeVar("T")

# The code of a key that holds a list, hash or the like, which presift never writes.
WRONG_TYPE = "WRONGTYPE"
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
    """Commands to the server at `url` (redis://, rediss:// or unix://), to the primary that Sentinels name
    (redis+sentinel://, rediss+sentinel://), or to a cluster (redis+cluster://, rediss+cluster://). Connects at the
    first command. In a cluster each command goes to the primary of its key; all keys of a script must be in one slot.

    TLS files and client certificates are query parameters: `?ssl_ca_certs=/path&ssl_certfile=...&ssl_keyfile=...`.
    Changes of state are logged once, at `log_level`: refusals, no answer, and the end of both.
    Raises InvalidRequest if the URL cannot be read.
    """

    def __init__(self, url: str, limits: CacheLimits, log_level: int = logging.WARNING) -> None:
        address = read_redis_url(url)
        self.is_cluster = bool(address.nodes)
        self._servers = Cluster(address, limits) if self.is_cluster else OneServer(address, limits)
        self._breaker = CircuitBreaker(limits.rest_after_failures, limits.rest_s)
        self._failures = OngoingFailures()
        self._log_level = log_level
        self._is_available = True

    @property
    def is_available(self) -> bool:
        """Whether the server carried out the last command; True before the first."""
        return self._is_available

    async def execute(self, *command: str | bytes | int, timeout_s: float) -> object:
        """The server's reply within `timeout_s`, not counting delays of this process. Raises CacheUnavailable."""
        return await self.attempt(lambda: self._servers.send(*command), timeout_s)

    async def send(self, *command: str | bytes | int) -> object:
        """The server's reply, for a library that sends its own commands; its calls must go through `attempt`."""
        return await self._servers.send(*command)

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
            # Any other refusal may last: the server is full, or a replica.
            self._is_available = code == WRONG_TYPE
            if code != WRONG_TYPE and self._failures.record_failure(code):
                _log.log(self._log_level, "the cache server refuses commands: %s", code)
            await self._servers.recover(code, timeout_s)
            raise CacheUnavailable(Outcome.ERROR, code) from None
        except Exception as error:  # whatever the client raises for a broken server or network is a miss
            code = _error_code(error)
            self._record_failure(error, code, began_s)
            await self._servers.recover(code, timeout_s)
            timed_out = isinstance(error, (TimeoutError, RedisTimeoutError))
            raise CacheUnavailable(Outcome.TIMEOUT if timed_out else Outcome.ERROR, code) from None
        self._record_success()
        return reply

    async def mode(self, timeout_s: float) -> str:
        """How the server runs: standalone, cluster or sentinel; empty if it does not say."""
        try:
            async with loop_aware_timeout(timeout_s):
                reply = await self._servers.send("HELLO", 2)
        except Exception:  # a user without the right to ask, a proxy, or no answer
            return ""
        pairs = reply if isinstance(reply, list) else []
        return next(
            (value.decode() for name, value in zip(pairs[::2], pairs[1::2], strict=False) if name == b"mode"), ""
        )

    async def on_each_primary(self, check: Callable[[], Awaitable[None]]) -> None:
        """Run `check`; on a cluster, where its keys must be random, until each primary has had one of them."""
        await self._servers.on_each_primary(check)

    async def check_redirections(self, timeout_s: float) -> None:
        """Send what a cluster needs for a slot on its way to another server. Raises CacheUnavailable."""
        if isinstance(self._servers, Cluster):
            await self.attempt(self._servers.check_asking, timeout_s)

    async def aclose(self) -> None:
        """Close every connection, for at most a second or two."""
        await self._servers.aclose()

    def _record_success(self) -> None:
        self._is_available = True
        self._breaker.record_success()
        if self._failures.record_success():
            _log.log(self._log_level, "the cache server works again: no failure for %.0f s", QUIET_S)

    def _record_failure(self, error: Exception, code: str, began_s: float) -> None:
        self._is_available = False
        self._breaker.record_failure(began_s)
        is_new = self._breaker.state is not BreakerState.CLOSED and self._failures.record_failure(code)
        level = self._log_level if is_new else logging.DEBUG
        _log.log(level, "the cache server does not answer: %s", code or type(error.__cause__ or error).__name__)


def _error_code(error: Exception) -> str:
    """The first word of the server's error; empty if the server sent none. The rest may quote what presift sent."""
    if isinstance(error, SlotNotCoveredError):
        return "CLUSTERDOWN"  # what a node says of such a slot
    while isinstance(error, RedisClusterException):  # of a look-up: what the last node said
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, Exception):
            return ""
        error = cause
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
