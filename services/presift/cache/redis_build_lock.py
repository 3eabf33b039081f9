"""One lease per digest in the Redis that holds the values, so that only one orchestrator computes a value."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

from presift.cache.redis_client import CacheUnavailable, RedisClient
from presift.cache.redis_store import RedisStore, redis_key
from presift.cache.store import CacheLimits, CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt

LEASE_S = 10.0

# SET NX PX, except that a process gets a lease back that it failed to release.
_CLAIM = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class RedisBuildLock:
    """A BuildLock whose leases last `lease_s` seconds: longer than a draft pass, and the longest wait for a dead
    process.

    Each claim reports one outcome: HIT (another process's value), or compute: MISS (got the lease), TIMEOUT (waited in
    vain), ERROR or SKIPPED (Redis failed).
    """

    def __init__(
        self,
        client: RedisClient,
        limits: CacheLimits,
        observe: CacheObserver = ignore,
        lease_s: float = LEASE_S,
        poll_s: float = 0.02,
    ) -> None:
        self._client = client
        self._limits = limits
        self._observe = observe
        self._lease_s = lease_s
        self._poll_s = poll_s
        patient = replace(limits, timeout_s=limits.claim_timeout_s)
        self._values = RedisStore(client, patient)  # not observed: polls are not misses
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
            return  # it expires

    async def _take_or_wait(self, digest: str) -> CompressedPrompt | None:
        while True:
            is_held = await self._claim(digest) == 1
            if is_held:
                self._held.add(digest)
            # Read after the claim: its holder may have stored the value and released since the first miss.
            value = await self._values.get(digest)
            if is_held and value:
                await self.release(digest)
            if is_held or value:
                return value
            await asyncio.sleep(self._poll_s)

    async def _claim(self, digest: str) -> object:
        lease_ms = round(self._lease_s * 1000)
        return await self._run(_CLAIM, digest, lease_ms, timeout_s=self._limits.claim_timeout_s)

    async def _run(self, script: str, digest: str, *arguments: int, timeout_s: float) -> object:
        key = f"{redis_key(digest)}:lease"
        return await self._client.execute("EVAL", script, 1, key, self._holder, *arguments, timeout_s=timeout_s)
