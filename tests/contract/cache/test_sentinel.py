"""A primary, a replica and a Sentinel, all real: presift follows a failover without a new URL."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from presift.cache.factory import open_build_lock, open_store
from presift.cache.store import CacheLimits, Operation, Outcome, Store
from presift.core.errors import InvalidRequest, Overloaded
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.admission.quotas import FailureMode
from presift.orchestrator.domain.caller import TenantLimits
from presift.orchestrator.redis_check import check_redis

from ..fakes.sentinel import SENTINEL_PASSWORD, WatchedValkeys

PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0, rest_s=0.1)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
VALUE = CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (1,), 1.0, ModelInfo("draft", "r1", "f", 1, 1, 1, 1))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedValkeys]:
    watched = WatchedValkeys.start(tmp_path)
    yield watched
    watched.stop()


@contextlib.asynccontextmanager
async def opened(url: str, limits: CacheLimits = PATIENT) -> AsyncIterator[tuple[Store, Counter[Outcome]]]:
    seen: Counter[Outcome] = Counter()

    def observe(operation: Operation, outcome: Outcome) -> None:
        seen[outcome] += 1

    store = open_store(url, limits, observe, "the salt")
    try:
        yield store, seen
    finally:
        await store.aclose()


async def put_at_last(store: Store, seen: Counter[Outcome]) -> None:
    before = seen[Outcome.STORED]
    async with asyncio.timeout(30):
        while seen[Outcome.STORED] == before:
            await store.put(DIGEST, VALUE)
            await asyncio.sleep(0.05)


async def run_out(url: str) -> int:
    """How many requests of a tenant with a limit of two a minute were admitted."""
    usage, admitted = open_usage_limits(url, 5.0, FailureMode.CLOSED), 0
    try:
        with pytest.raises(Overloaded, match="left"):
            while admitted < 9:
                async with usage.quotas.held("acme", TenantLimits(200, 2)) as quota:
                    await quota.reserve(50, max_new_tokens=50)
                    quota.record_generated(50)
                    admitted += 1
    finally:
        await usage.aclose()
    return admitted


@pytest.mark.asyncio
async def test_everything_works_by_a_sentinel(watched: WatchedValkeys) -> None:
    await check_redis(watched.url, has_limits=True)
    async with opened(watched.url) as (store, seen):
        await store.put(DIGEST, VALUE)
        assert await store.get(DIGEST) == VALUE and seen == {Outcome.STORED: 1, Outcome.HIT: 1}
        assert await open_build_lock(store).claim(DIGEST) == VALUE
    assert await run_out(watched.url) == 2


@pytest.mark.asyncio
async def test_a_primary_that_becomes_a_replica_is_left(watched: WatchedValkeys) -> None:
    async with opened(watched.url) as (store, seen):
        await store.put(DIGEST, VALUE)
        watched.servers[0].wait(1, 10_000)
        await asyncio.to_thread(watched.fail_over)
        await put_at_last(store, seen)
        assert watched.servers[1].dbsize() == 1 and await store.get(DIGEST) == VALUE
    assert await run_out(watched.url) == 2


@pytest.mark.asyncio
async def test_a_primary_that_dies_is_replaced(watched: WatchedValkeys) -> None:
    async with opened(watched.url) as (store, seen):
        await store.put(DIGEST, VALUE)
        watched.servers[0].wait(1, 10_000)
        watched.kill(0)
        await asyncio.to_thread(watched.wait_for_the_failover)
        async with asyncio.timeout(30):
            while (found := await store.get(DIGEST)) is None:
                await asyncio.sleep(0.05)
        assert found == VALUE  # it was replicated
        await put_at_last(store, seen)


@pytest.mark.asyncio
async def test_a_sentinel_that_hangs_is_passed_over_though_a_look_up_is_shorter(watched: WatchedValkeys) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    hosts = f"127.0.0.1:{server.sockets[0].getsockname()[1]},127.0.0.1:{watched.sentinel_port}"
    async with opened(watched.url_of(hosts), CacheLimits(put_timeout_s=0.1, rest_s=0.05)) as (store, seen):
        await store.put(DIGEST, VALUE)
        assert not seen[Outcome.STORED]
        await put_at_last(store, seen)
    server.close()


@pytest.mark.asyncio
async def test_a_service_that_no_sentinel_knows_is_a_miss(
    watched: WatchedValkeys, caplog: pytest.LogCaptureFixture
) -> None:
    url = watched.url_of(f"127.0.0.1:{watched.sentinel_port}", "other")
    async with opened(url) as (store, seen):
        for _ in range(6):
            assert await store.get(DIGEST) is None
    assert seen == {Outcome.ERROR: 5, Outcome.SKIPPED: 1}
    assert [each.getMessage() for each in caplog.records] == ["the cache server does not answer: MasterNotFoundError"]


@pytest.mark.asyncio
async def test_a_wrong_password_of_the_sentinels_is_not_shown(
    watched: WatchedValkeys, caplog: pytest.LogCaptureFixture
) -> None:
    url = watched.url_of(f"127.0.0.1:{watched.sentinel_port}", sentinel_password="wrong-s3cret")
    async with opened(url) as (store, _):
        for _ in range(6):
            assert await store.get(DIGEST) is None
    assert "does not answer" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.asyncio
async def test_a_sentinel_in_place_of_a_server_is_named(watched: WatchedValkeys) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await check_redis(f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{watched.sentinel_port}", has_limits=True)
    assert refused.value.value == "a server in sentinel mode" and "redis+sentinel://" in str(refused.value.limit)
