"""A lease per digest in the Redis that holds the values: two orchestrators, one draft pass."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

from presift.cache.redis_client import CacheUnavailable, RedisClient
from presift.cache.redis_store import RedisStore, redis_key
from presift.cache.store import CacheLimits, CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt

LEASE_S = 10.0

# SET NX PX, except that a lease which this process failed to release is its own again instead of a wait for nobody.
_CLAIM = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class RedisBuildLock:
    """A Lease that lasts `lease_s` seconds: longer than a draft pass, as short as a wait for a dead process may be.

    Told to the observer per claim: MISS (ours to compute), HIT (another's value), TIMEOUT (waited in vain: compute),
    ERROR or SKIPPED (no lease to be had: compute).
    """

    def __init__(
        self,
        link: RedisClient,
        limits: CacheLimits,
        observe: CacheObserver = ignore,
        lease_s: float = LEASE_S,
        poll_s: float = 0.02,
    ) -> None:
        self._link = link
        self._limits = limits
        self._observe = observe
        self._lease_s = lease_s
        self._poll_s = poll_s
        patient = replace(limits, timeout_s=limits.claim_timeout_s)
        self._values = RedisStore(link, patient)  # unobserved: polling is not a row of misses
        self._holder = secrets.token_hex(16)
        self._held: set[str] = set()

    @property
    def held(self) -> int:
        return len(self._held)

    async def claim(self, digest: str) -> CompressedPrompt | None:
        value: CompressedPrompt | None = None
        try:
            async with asyncio.timeout(self._lease_s):
                value = await self._take_or_wait(digest)
            outcome = Outcome.HIT if value else Outcome.MISS
        except CacheUnavailable as trouble:
            outcome = trouble.outcome
        except TimeoutError:
            outcome = Outcome.TIMEOUT
        self._observe(Operation.CLAIM, outcome)
        return value

    async def release(self, digest: str) -> None:
        self._held.discard(digest)
        try:
            await self._run(_RELEASE, digest, timeout_s=self._limits.timeout_s)
        except CacheUnavailable:
            return  # it lapses by itself

    async def _take_or_wait(self, digest: str) -> CompressedPrompt | None:
        while True:
            is_ours = await self._claim(digest) == 1
            if is_ours:
                self._held.add(digest)
            # Looked up after the claim: its holder may have put the value and released between our miss and now.
            value = await self._values.get(digest)
            if is_ours and value:
                await self.release(digest)
            if is_ours or value:
                return value
            await asyncio.sleep(self._poll_s)

    async def _claim(self, digest: str) -> object:
        lease_ms = round(self._lease_s * 1000)
        return await self._run(_CLAIM, digest, lease_ms, timeout_s=self._limits.claim_timeout_s)

    async def _run(self, script: str, digest: str, *arguments: int, timeout_s: float) -> object:
        key = f"{redis_key(digest)}:lease"
        return await self._link.ask("EVAL", script, 1, key, self._holder, *arguments, timeout_s=timeout_s)
