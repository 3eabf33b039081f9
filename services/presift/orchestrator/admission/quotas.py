"""Quotas: what a tenant may use, taken before a call's work begins and corrected when it ends."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Any

from presift.cache.redis_client import CacheUnavailable
from presift.core.errors import InvalidRequest, Overloaded, PresiftError
from presift.orchestrator.admission.concurrency_limit import ConcurrencyLimit, MemoryConcurrencyLimit
from presift.orchestrator.admission.token_rate_limit import WINDOW_S, TokenRateLimit
from presift.orchestrator.domain.caller import Limits
from presift.telemetry.metrics import count

RETRY_S = 1.0

log = logging.getLogger(__name__)


class FailureMode(StrEnum):
    """What happens while nobody can tell how much a tenant has used."""

    OPEN = "open"
    CLOSED = "closed"


class Quota:
    """One call's part of what its tenant may use."""

    def __init__(self, owner: Quotas, tenant: str, limit: int | None) -> None:
        self._owner = owner
        self._tenant = tenant
        self._limit = limit
        self._taken = self._prompt = self._delivered = 0
        self._taken_s = 0.0

    @property
    def is_unanswered(self) -> bool:
        """Whether no token has gone to the caller."""
        return self._delivered == 0

    async def spend(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Take what the call may use at most. Raises Overloaded, and InvalidRequest where it alone is too much."""
        limit, tokens = self._limit, prompt_tokens + max_new_tokens
        if limit is None:
            return
        if tokens > limit:
            raise InvalidRequest("tokens_per_minute", tokens, f"<= {limit}, prompt and max_new_tokens together")
        if await self._owner.take(self._tenant, tokens, limit):
            self._taken, self._prompt, self._taken_s = tokens, prompt_tokens, time.monotonic()

    def delivered(self, tokens: int) -> None:
        """So many new tokens went to the caller."""
        self._delivered += tokens

    def unused(self, *, is_owed: bool) -> int:
        """The tokens to be given back at the end; all of them if the call `is_owed` its answer still."""
        if time.monotonic() - self._taken_s > WINDOW_S:
            return 0  # what was taken so long ago does not count any more
        used = 0 if is_owed else self._prompt + self._delivered
        return max(0, self._taken - used)


class Quotas:
    """`rates` and `leases` hold what all orchestrators together have given; `on_trouble`: while they cannot tell."""

    def __init__(
        self,
        rates: TokenRateLimit | None = None,
        leases: ConcurrencyLimit | None = None,
        on_trouble: FailureMode = FailureMode.OPEN,
    ) -> None:
        self._rates = TokenRateLimit() if rates is None else rates
        self._leases = MemoryConcurrencyLimit() if leases is None else leases
        self._on_trouble = on_trouble
        self._endings: set[asyncio.Task[None]] = set()
        self._is_in_trouble = False

    @property
    def running(self) -> int:
        """Calls under way here that count against their tenants' limits."""
        return self._leases.held

    @asynccontextmanager
    async def held(self, tenant: str | None, limits: Limits) -> AsyncIterator[Quota]:
        """A call, until the block ends; without limits nothing is asked. Raises Overloaded."""
        allowance, is_owed = Quota(self, tenant or "", limits.tokens_per_minute), False
        async with self._leased(tenant or "", limits.concurrency):
            try:
                yield allowance
            except PresiftError:
                is_owed = allowance.is_unanswered
                raise
            finally:
                unused = allowance.unused(is_owed=is_owed)
                if unused and limits.tokens_per_minute is not None:
                    await self._to_the_end(self._give_back(tenant or "", unused, limits.tokens_per_minute))

    async def take(self, tenant: str, tokens: int, limit: int) -> bool:
        """Whether so many were taken; without, where nobody can tell. Raises Overloaded."""
        try:
            left = await self._rates.take(tenant, tokens, limit)
        except CacheUnavailable:
            self._in_trouble("tokens_per_minute", limit)
            return False
        self._out_of_trouble()
        if left is None:
            return True
        count("presift.limits.refused", limit="tokens_per_minute")
        text = f"{tokens} tokens, and {left} of the tenant's {limit} per minute are left"
        # At a steady pace as many come back every second as the limit has in one.
        retry_s = min(WINDOW_S, max(RETRY_S, WINDOW_S * (tokens - left) / limit))
        raise Overloaded("tokens_per_minute", tokens, limit, retry_s, text)

    async def aclose(self) -> None:
        """Wait for what is being given back."""
        if self._endings:
            await asyncio.wait(self._endings)
        await self._leases.aclose()

    @asynccontextmanager
    async def _leased(self, tenant: str, limit: int | None) -> AsyncIterator[None]:
        if limit is None:
            yield
            return
        lease = secrets.token_hex(8)
        try:
            await self._claim(tenant, lease, limit)
            yield
        finally:  # it may have been claimed just as the caller left
            await self._to_the_end(self._release(tenant, lease))

    async def _claim(self, tenant: str, lease: str, limit: int) -> None:
        try:
            is_ours = await self._leases.claim(tenant, lease, limit)
        except CacheUnavailable:
            self._in_trouble("concurrency", limit)
            return
        self._out_of_trouble()
        if not is_ours:
            count("presift.limits.refused", limit="concurrency")
            text = f"{limit} calls of the tenant are under way, and that is its limit"
            raise Overloaded("concurrency", limit + 1, limit, RETRY_S, text)

    async def _give_back(self, tenant: str, tokens: int, limit: int) -> None:
        with suppress(CacheUnavailable):  # it is used up within a minute
            await self._rates.give_back(tenant, tokens, limit)

    async def _release(self, tenant: str, lease: str) -> None:
        with suppress(CacheUnavailable):  # it lapses by itself
            await self._leases.release(tenant, lease)

    def _in_trouble(self, field: str, limit: int) -> None:
        count("presift.limits.trouble", limit=field)
        if not self._is_in_trouble:
            self._is_in_trouble = True
            what = "calls are let in" if self._on_trouble is FailureMode.OPEN else "calls with limits are refused"
            log.warning("tenants' limits cannot be counted, the cache's server does not answer: %s", what)
        if self._on_trouble is FailureMode.CLOSED:
            text = f"nobody can tell what the tenant has used of its {field}; try again"
            raise Overloaded(field, "unknown", limit, RETRY_S, text)

    def _out_of_trouble(self) -> None:
        if self._is_in_trouble:
            self._is_in_trouble = False
            log.warning("tenants' limits are counted again")

    async def _to_the_end(self, ending: Coroutine[Any, Any, None]) -> None:
        """Also if this call is cancelled meanwhile."""
        task = asyncio.create_task(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        await asyncio.shield(task)
