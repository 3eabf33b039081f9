"""Quotas: what a tenant may use, reserved before a request's work begins and corrected when it ends."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Any

from presift.cache.ongoing_failures import QUIET_S, OngoingFailures
from presift.cache.redis_client import CacheUnavailable
from presift.core.errors import (
    DraftUnavailable,
    InternalError,
    InvalidRequest,
    Overloaded,
    PresiftError,
    ShuttingDown,
    TargetUnavailable,
)
from presift.orchestrator.admission.concurrency_limit import ConcurrencyLimit, MemoryConcurrencyLimit
from presift.orchestrator.admission.token_rate_limit import WINDOW_S, MemoryTokenRateLimit, TokenRateLimit
from presift.orchestrator.domain.caller import TenantLimits
from presift.telemetry.metrics import count

RETRY_S = 1.0

# After any other error the prompt stays charged: draft and target may have worked for it. Else a caller could make them
# work again and again for nothing.
_SERVICE_FAILURES = (DraftUnavailable, TargetUnavailable, Overloaded, ShuttingDown, InternalError)

log = logging.getLogger(__name__)


class FailureMode(StrEnum):
    """What happens to requests while a tenant's usage is unavailable: they are admitted or rejected."""

    OPEN = "open"
    CLOSED = "closed"


class Quota:
    """One request's share of its tenant's limits."""

    def __init__(self, quotas: Quotas, tenant: str, limit: int | None) -> None:
        self._quotas = quotas
        self._tenant = tenant
        self._limit = limit
        self._reserved = self._prompt = self._generated = 0
        self._reserved_at_s = 0.0

    async def reserve_estimate(self, prompt_tokens: int, *, max_new_tokens: int, is_exact: bool = False) -> None:
        """Reserve what the request will use, before its prompt is tokenized. Raises as `reserve` does.

        Unless it `is_exact`, the number may be too high: it cannot tell that no minute allows the request.
        """
        if self._limit is not None:
            tokens = self._allowed(prompt_tokens + max_new_tokens) if is_exact else prompt_tokens + max_new_tokens
            await self._reserve_up_to(min(tokens, self._limit), self._limit)

    async def reserve(self, prompt_tokens: int, *, max_new_tokens: int) -> None:
        """Reserve the most that the request can use, instead of the estimate. Raises Overloaded, and InvalidRequest if
        no minute allows it."""
        if self._limit is not None:
            self._prompt = prompt_tokens
            tokens = self._allowed(prompt_tokens + max_new_tokens)
            await self._reserve_up_to(tokens, self._limit)
            await self._return_above(tokens, self._limit)

    def record_generated(self, tokens: int) -> None:
        """That many new tokens were sent to the caller."""
        self._generated += tokens

    def _allowed(self, tokens: int) -> int:
        if self._limit is not None and tokens > self._limit:
            limit = f"<= {self._limit}, prompt and max_new_tokens together"
            raise InvalidRequest("tokens_per_minute", tokens, limit)
        return tokens

    async def _reserve_up_to(self, tokens: int, limit: int) -> None:
        """Raise the reservation to `tokens` if it is lower."""
        if self.age_s > WINDOW_S:
            self._reserved = 0
        more = tokens - self._reserved
        if more > 0 and await self._quotas.reserve_or_return(self._tenant, more, limit):
            if not self._reserved:
                self._reserved_at_s = time.monotonic()
            self._reserved = tokens

    async def _return_above(self, tokens: int, limit: int) -> None:
        """Return what the estimate was too high: the answer may take minutes."""
        excess = self._reserved - tokens
        if excess > 0 and self.age_s <= WINDOW_S:
            self._reserved = tokens
            await self._quotas.begin_to_give_back(self._tenant, excess, limit, self.age_s)

    @property
    def age_s(self) -> float:
        """Seconds since the reservation."""
        return time.monotonic() - self._reserved_at_s

    def unused(self, *, is_service_failure: bool) -> int:
        """The tokens to return at the end; all of them if the service failed before the first token."""
        if self.age_s > WINDOW_S:
            return 0  # the reservation has left the window
        used = 0 if is_service_failure and not self._generated else self._prompt + self._generated
        return max(0, self._reserved - used)


class Quotas:
    """`rate` and `concurrency` count what all orchestrators together have admitted; `on_failure`: while they cannot."""

    def __init__(
        self,
        rate: TokenRateLimit | None = None,
        concurrency: ConcurrencyLimit | None = None,
        on_failure: FailureMode = FailureMode.OPEN,
    ) -> None:
        self._rate = MemoryTokenRateLimit() if rate is None else rate
        self._concurrency = MemoryConcurrencyLimit() if concurrency is None else concurrency
        self._on_failure = on_failure
        self._releases: set[asyncio.Task[None]] = set()
        self._failures = OngoingFailures()

    @property
    def running(self) -> int:
        """The requests of this process that count against their tenants' concurrency."""
        return self._concurrency.held

    @asynccontextmanager
    async def held(self, tenant: str | None, limits: TenantLimits) -> AsyncIterator[Quota]:
        """The quota of one request, until the block ends. Without limits nothing is counted. Raises Overloaded."""
        quota, is_service_failure = Quota(self, tenant or "", limits.tokens_per_minute), False
        async with self._concurrency_held(tenant or "", limits.concurrency):
            try:
                yield quota
            except PresiftError as error:
                is_service_failure = isinstance(error, _SERVICE_FAILURES)
                raise
            finally:
                unused = quota.unused(is_service_failure=is_service_failure)
                if unused and limits.tokens_per_minute is not None:
                    await self.give_back(tenant or "", unused, limits.tokens_per_minute, quota.age_s)

    async def reserve(self, tenant: str, tokens: int, limit: int) -> bool:
        """Whether the tokens were reserved; they are not while usage is unavailable. Raises Overloaded."""
        try:
            left = await self._rate.take(tenant, tokens, limit)
        except CacheUnavailable as error:
            self._record_failure(error.code, "tokens_per_minute", limit)
            return False
        self._record_success()
        if left is None:
            return True
        count("presift.limits.refused", limit="tokens_per_minute")
        text = f"the request needs {tokens} tokens, but {left} of the tenant's {limit} per minute are left"
        # At a steady pace a second returns as many tokens as the limit allows in one.
        retry_s = min(WINDOW_S, max(RETRY_S, WINDOW_S * (tokens - left) / limit))
        raise Overloaded("tokens_per_minute", tokens, limit, retry_s, text)

    async def reserve_or_return(self, tenant: str, tokens: int, limit: int) -> bool:
        """As `reserve`. If this request is cancelled meanwhile, tokens that were reserved are returned."""
        reserving = asyncio.create_task(self.reserve(tenant, tokens, limit))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            await self._finish(self._undo(reserving, tenant, tokens, limit))
            raise

    async def give_back(self, tenant: str, tokens: int, limit: int, age_s: float) -> None:
        """Return tokens that were reserved `age_s` seconds ago, even if this request is cancelled meanwhile."""
        await self._finish(self._return(tenant, tokens, limit, age_s))

    async def begin_to_give_back(self, tenant: str, tokens: int, limit: int, age_s: float) -> None:
        """As `give_back`, without waiting for Redis."""
        self._start(self._return(tenant, tokens, limit, age_s))
        await asyncio.sleep(0)  # tokens that this process counts have returned after that

    async def _undo(self, reserving: asyncio.Task[bool], tenant: str, tokens: int, limit: int) -> None:
        with suppress(Overloaded):
            if await reserving:
                await self._return(tenant, tokens, limit, 0.0)

    async def aclose(self) -> None:
        """Wait until everything is released."""
        if self._releases:
            await asyncio.wait(self._releases)
        await self._concurrency.aclose()

    @asynccontextmanager
    async def _concurrency_held(self, tenant: str, limit: int | None) -> AsyncIterator[None]:
        if limit is None:
            yield
            return
        request_id = secrets.token_hex(8)
        try:
            await self._claim(tenant, request_id, limit)
            yield
        finally:  # it may have been claimed just as the caller disconnected
            await self._finish(self._release(tenant, request_id))

    async def _claim(self, tenant: str, request_id: str, limit: int) -> None:
        try:
            is_claimed = await self._concurrency.claim(tenant, request_id, limit)
        except CacheUnavailable as error:
            self._record_failure(error.code, "concurrency", limit)
            return
        self._record_success()
        if not is_claimed:
            count("presift.limits.refused", limit="concurrency")
            text = f"the tenant already runs {limit} requests, its concurrency limit"
            raise Overloaded("concurrency", limit + 1, limit, RETRY_S, text)

    async def _return(self, tenant: str, tokens: int, limit: int, age_s: float) -> None:
        with suppress(CacheUnavailable):  # the window forgets them within a minute
            await self._rate.give_back(tenant, tokens, limit, age_s)

    async def _release(self, tenant: str, request_id: str) -> None:
        with suppress(CacheUnavailable):  # the lease expires
            await self._concurrency.release(tenant, request_id)

    def _record_failure(self, code: str, field: str, limit: int) -> None:
        count("presift.limits.trouble", limit=field)
        if self._failures.record_failure(code):
            is_open = self._on_failure is FailureMode.OPEN
            effect = "tenant limits are not enforced" if is_open else "requests of tenants with limits are rejected"
            log.warning("%s: %s", f"Redis refuses to count usage ({code})" if code else "Redis does not answer", effect)
        if self._on_failure is FailureMode.CLOSED:
            usage = "concurrency" if field == "concurrency" else "token"
            text = f"{usage} usage is unavailable (limits fail closed); retry later"
            raise Overloaded(field, "unknown", limit, RETRY_S, text)

    def _record_success(self) -> None:
        if self._failures.record_success():
            log.warning("Redis has counted all usage for %.0f s: tenant limits are enforced", QUIET_S)

    async def _finish(self, release: Coroutine[Any, Any, None]) -> None:
        """Run it to its end, even if this request is cancelled meanwhile."""
        await asyncio.shield(self._start(release))

    def _start(self, release: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(release)
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        return task
