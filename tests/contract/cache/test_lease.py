"""The lease: several orchestrators over one Valkey server, one computation in all."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from redis import Redis

from presift.cache.build_lock import NoBuildLock
from presift.cache.embedded import embedded_cache
from presift.cache.redis_build_lock import RedisBuildLock
from presift.cache.redis_client import RedisClient
from presift.cache.redis_store import RedisStore
from presift.cache.single_flight import SingleFlight
from presift.cache.store import CacheLimits, Operation, Outcome
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo

PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
VALUE = CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (1,), 1.0, ModelInfo("draft", "r1", "f", 1, 1, 1, 1))


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    with embedded_cache() as cache:
        yield cache.url


@pytest.fixture
def admin(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        client.flushall()
        yield client


@dataclass
class Orchestrator:
    """What an orchestrator does on a cache miss, with a draft pass that only counts."""

    store: RedisStore
    lease: RedisBuildLock
    outcomes: Counter[Outcome]
    flight: SingleFlight[CompressedPrompt] = field(default_factory=SingleFlight)
    draft_passes: int = 0

    async def compress(self, digest: str = DIGEST) -> CompressedPrompt:
        value, _ = await self.flight.run(digest, lambda: self._find_or_compute(digest))
        return value

    async def _find_or_compute(self, digest: str) -> CompressedPrompt:
        if found := await self.store.get(digest) or await self.lease.claim(digest):
            return found
        try:
            self.draft_passes += 1
            await asyncio.sleep(0.1)
            await self.store.put(digest, VALUE)
            return VALUE
        finally:
            await self.lease.release(digest)


@contextlib.asynccontextmanager
async def orchestrator(
    url: str, limits: CacheLimits = PATIENT, wait_s: float = 5.0, lease_s: float = 3.0
) -> AsyncIterator[Orchestrator]:
    outcomes: Counter[Outcome] = Counter()

    def observe(operation: Operation, outcome: Outcome) -> None:
        assert operation is Operation.CLAIM
        outcomes[outcome] += 1

    link = RedisClient(url, limits)
    try:
        store = RedisStore(link, limits)
        yield Orchestrator(store, RedisBuildLock(store, observe, wait_s, lease_s), outcomes)
    finally:
        await link.aclose()


@pytest.mark.asyncio
async def test_500_identical_requests_on_two_orchestrators_cost_one_draft_pass(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url) as one, orchestrator(valkey_url) as other:
        values = await asyncio.gather(*((one, other)[n % 2].compress() for n in range(500)))
        assert values == [VALUE] * 500
        assert one.draft_passes + other.draft_passes == 1
        assert one.outcomes + other.outcomes == {Outcome.MISS: 1, Outcome.HIT: 1}
        assert len(one.flight) == len(other.flight) == 0
    assert admin.dbsize() == 1  # the value; no lease is left


@pytest.mark.asyncio
async def test_many_prompts_on_three_orchestrators_cost_one_draft_pass_each(valkey_url: str, admin: Redis) -> None:
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(20)]
    async with contextlib.AsyncExitStack() as stack:
        all_three = [await stack.enter_async_context(orchestrator(valkey_url)) for _ in range(3)]
        await asyncio.gather(*(each.compress(digest) for digest in digests for each in all_three))
        assert sum(each.draft_passes for each in all_three) == 20


@pytest.mark.asyncio
async def test_a_value_put_between_miss_and_claim_is_found(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url) as one:
        await one.store.put(DIGEST, VALUE)
        assert await one.lease.claim(DIGEST) == VALUE
        assert one.outcomes == {Outcome.HIT: 1}
    assert admin.dbsize() == 1  # the lease, taken in vain, was given back


async def die(holder: Orchestrator) -> None:
    """It renews nothing any more."""
    await holder.lease._leases.aclose()


@pytest.mark.asyncio
async def test_a_dead_holder_is_waited_for_no_longer_than_the_lease(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url, lease_s=0.3) as dead, orchestrator(valkey_url) as other:
        assert await dead.lease.claim(DIGEST) is None
        await die(dead)
        began = asyncio.get_running_loop().time()
        assert await other.lease.claim(DIGEST) is None
        assert 0.2 < asyncio.get_running_loop().time() - began < 1.5
        assert other.outcomes == {Outcome.MISS: 1}  # it took the lapsed lease


@pytest.mark.asyncio
async def test_one_of_those_that_wait_takes_over_from_a_dead_holder(valkey_url: str, admin: Redis) -> None:
    async with contextlib.AsyncExitStack() as stack:
        dead = await stack.enter_async_context(orchestrator(valkey_url, lease_s=0.3))
        waiting = [await stack.enter_async_context(orchestrator(valkey_url)) for _ in range(4)]
        assert await dead.lease.claim(DIGEST) is None
        await die(dead)
        assert await asyncio.gather(*(each.compress() for each in waiting)) == [VALUE] * 4
        assert sum(each.draft_passes for each in waiting) == 1


@pytest.mark.asyncio
async def test_a_pass_longer_than_the_lease_keeps_it(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url, lease_s=0.3) as slow, orchestrator(valkey_url) as other:
        assert await slow.lease.claim(DIGEST) is None
        waiting = asyncio.create_task(other.lease.claim(DIGEST))
        await asyncio.sleep(1.0)
        assert not waiting.done()  # two draft passes would begin here
        await slow.store.put(DIGEST, VALUE)
        await slow.lease.release(DIGEST)
        assert await waiting == VALUE
    assert admin.dbsize() == 1  # the value; no renewal has brought the lease back


@pytest.mark.asyncio
async def test_who_waits_asks_less_and_less(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url) as holder, orchestrator(valkey_url, wait_s=1.0) as other:
        assert await holder.lease.claim(DIGEST) is None
        before = admin.info("commandstats")["cmdstat_eval"]["calls"]
        assert await other.lease.claim(DIGEST) is None
        assert admin.info("commandstats")["cmdstat_eval"]["calls"] - before < 16  # 50 at the first pace
        await holder.lease.release(DIGEST)


@pytest.mark.asyncio
async def test_a_holder_that_is_too_slow_is_not_waited_for(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url) as slow, orchestrator(valkey_url, wait_s=0.2) as other:
        assert await slow.lease.claim(DIGEST) is None
        assert slow.outcomes == {Outcome.MISS: 1}
        assert await other.lease.claim(DIGEST) is None
        assert other.outcomes == {Outcome.TIMEOUT: 1}
        await other.lease.release(DIGEST)  # not its own
        assert admin.dbsize() == 1
        await slow.lease.release(DIGEST)
        assert admin.dbsize() == 0


@pytest.mark.asyncio
async def test_a_lease_that_was_not_released_is_no_wait_for_its_own_process(valkey_url: str, admin: Redis) -> None:
    async with orchestrator(valkey_url) as one:
        assert await one.lease.claim(DIGEST) is None
        async with asyncio.timeout(1.0):
            assert await one.lease.claim(DIGEST) is None
        assert one.outcomes == {Outcome.MISS: 2}


@pytest.mark.asyncio
async def test_a_claim_is_waited_for_longer_than_a_look_up(valkey_url: str, admin: Redis) -> None:
    limits = replace(CacheLimits(), timeout_s=1.0)
    async with orchestrator(valkey_url, limits) as one, orchestrator(valkey_url, limits) as other:
        assert await one.lease.claim(DIGEST) is None
        admin.client_pause(1500)  # longer than a look-up may take
        waiting = asyncio.create_task(other.lease.claim(DIGEST))
        await asyncio.sleep(1.7)
        assert not waiting.done()  # two draft passes would begin here
        await one.store.put(DIGEST, VALUE)
        assert await waiting == VALUE and other.outcomes == {Outcome.HIT: 1}
        await one.lease.release(DIGEST)


@pytest.mark.asyncio
async def test_without_a_server_everybody_computes() -> None:
    limits = replace(CacheLimits(), rest_after_failures=2)
    async with orchestrator("unix:///nowhere/valkey.sock", limits) as one:
        assert await one.compress() == VALUE
        assert await one.compress() == VALUE
        assert one.draft_passes == 2 and one.outcomes == {Outcome.ERROR: 1, Outcome.SKIPPED: 1}


@pytest.mark.asyncio
async def test_a_server_that_goes_away_meanwhile_ends_the_wait() -> None:
    with embedded_cache() as cache:
        async with orchestrator(cache.url) as holder, orchestrator(cache.url, CacheLimits()) as other:
            assert await holder.lease.claim(DIGEST) is None
            waiting = asyncio.create_task(other.lease.claim(DIGEST))
            await asyncio.sleep(0.1)
            cache.process.kill()
            async with asyncio.timeout(2.0):
                assert await waiting is None
            assert other.outcomes == {Outcome.ERROR: 1}
            await holder.lease.release(DIGEST)


@pytest.mark.asyncio
async def test_no_lease_lets_everybody_compute() -> None:
    assert await NoBuildLock().claim(DIGEST) is None
    await NoBuildLock().release(DIGEST)


async def test_leases_that_are_held_are_counted(valkey_url: str, admin: Redis) -> None:
    link = RedisClient(valkey_url, PATIENT)
    one, other = (RedisBuildLock(RedisStore(link, PATIENT), wait_s=0.2) for _ in range(2))
    assert await one.claim(DIGEST) is None
    assert (one.held, other.held, NoBuildLock().held) == (1, 0, 0)
    assert await other.claim(DIGEST) is None  # it waited in vain, and computes too
    await one.release(DIGEST)
    assert one.held == 0
    await link.aclose()
