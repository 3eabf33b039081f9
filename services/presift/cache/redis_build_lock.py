"""One lease per digest in the Redis that holds the values, so that only one orchestrator computes a value."""

from __future__ import annotations

import asyncio
import secrets

from presift.cache.redis_client import CacheUnavailable
from presift.cache.redis_store import RedisStore, redis_key
from presift.cache.renewal import HeldLeases
from presift.cache.store import CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt

# The longest wait for a process that died. Leases are renewed three times in this time.
LEASE_S = 3.0
# The longest wait for a process that lives.
WAIT_S = 60.0
# Pauses between two looks at another process's lease: the first, the longest, and how they grow.
_POLL_S, _LONGEST_POLL_S, _POLL_GROWTH = 0.02, 0.2, 1.5

# SET NX PX, except that a process gets a lease back that it failed to release.
_CLAIM = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# Renews only a lease of this process: it does nothing after a release, or if another process took the lease over.
_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class RedisBuildLock:
    """The BuildLock of `store`. Its leases last `lease_s` seconds and are renewed until `release`. The lease of a
    process that died expires, and one of the waiting processes takes it over. None waits longer than `wait_s`, which
    should exceed the time of a draft pass.

    Each claim reports one outcome: HIT (another process's value), or compute: MISS (got the lease), TIMEOUT (waited in
    vain), ERROR or SKIPPED (Redis failed).
    """

    def __init__(
        self,
        store: RedisStore,
        observe: CacheObserver = ignore,
        wait_s: float = WAIT_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._client = store.client
        self._limits = store.limits
        self._observe = observe
        self._wait_s = wait_s
        self._lease_ms = round(lease_s * 1000)
        self._values = store.patient()  # not observed: polls are not misses
        self._holder = secrets.token_hex(16)
        self._leases: HeldLeases[str] = HeldLeases(self._renew, lease_s / 3)

    @property
    def held(self) -> int:
        return len(self._leases)

    async def claim(self, digest: str) -> CompressedPrompt | None:
        value: CompressedPrompt | None = None
        try:
            async with asyncio.timeout(self._wait_s):
                value = await self._take_or_wait(digest)
            outcome = Outcome.HIT if value else Outcome.MISS
        except CacheUnavailable as trouble:
            outcome = trouble.outcome
        except TimeoutError:
            outcome = Outcome.TIMEOUT
        self._observe(Operation.CLAIM, outcome)
        return value

    async def release(self, digest: str) -> None:
        self._leases.discard(digest)
        try:
            await self._run(_RELEASE, digest, timeout_s=self._limits.timeout_s)
        except CacheUnavailable:
            return  # it expires

    async def check(self, timeout_s: float) -> None:
        """Run each script on a key that nothing uses. Raises CacheUnavailable."""
        digest = secrets.token_hex(32)
        for script, arguments in ((_CLAIM, (1000,)), (_RENEW, (1000,)), (_RELEASE, ())):
            await self._run(script, digest, *arguments, timeout_s=timeout_s)

    async def _take_or_wait(self, digest: str) -> CompressedPrompt | None:
        pause_s = _POLL_S
        while True:
            is_held = await self._claim(digest) == 1
            if is_held:
                self._leases.add(digest)
            # Read after the claim: its holder may have stored the value and released since the first miss.
            value = await self._values.get(digest)
            if is_held and value:
                await self.release(digest)
            if is_held or value:
                return value
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_POLL_S, pause_s * _POLL_GROWTH)

    async def _claim(self, digest: str) -> object:
        return await self._run(_CLAIM, digest, self._lease_ms, timeout_s=self._limits.claim_timeout_s)

    async def _renew(self, digest: str) -> object:
        return await self._run(_RENEW, digest, self._lease_ms, timeout_s=self._limits.claim_timeout_s)

    async def _run(self, script: str, digest: str, *arguments: int, timeout_s: float) -> object:
        key = f"{redis_key(digest)}:lease"
        return await self._client.execute("EVAL", script, 1, key, self._holder, *arguments, timeout_s=timeout_s)
