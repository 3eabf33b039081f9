"""Real clusters of three primaries: presift finds the server of each key, also while slots move and primaries die."""

import asyncio
import contextlib
import hashlib
import os
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from redis.crc import key_slot

from presift.cache.factory import open_build_lock, open_store
from presift.cache.redis_build_lock import RedisBuildLock
from presift.cache.redis_client import RedisClient
from presift.cache.redis_store import RedisStore, redis_key
from presift.cache.store import CacheLimits, Operation, Outcome, Store
from presift.core.errors import InvalidRequest, Overloaded
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.admission.quotas import FailureMode
from presift.orchestrator.domain.caller import TenantLimits
from presift.orchestrator.redis_check import check_redis

from ..fakes.valkeys import PASSWORD, ValkeyCluster, free_port, run_valkey, valkey_cluster, wait_until

PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0, rest_s=0.1)
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(30)]
SECURITY = Path(__file__).parents[3] / "ops" / "security.md"


def value_of(digest: str) -> CompressedPrompt:
    tokens = 1 + DIGESTS.index(digest)
    return CompressedPrompt(TokenMask(np.ones(tokens, np.bool_)), (1,), 1.0, ModelInfo("d", "r1", "f", 1, 1, 1, 1))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    with valkey_cluster(tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: ValkeyCluster) -> ValkeyCluster:
    for server in shared.servers:
        server.flushall()
    return shared


@pytest.fixture
def with_replica(tmp_path: Path) -> Iterator[ValkeyCluster]:
    with valkey_cluster(tmp_path, replicas=1) as cluster:
        yield cluster


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


async def run_out(url: str, tenant: str = "acme", mode: FailureMode = FailureMode.CLOSED) -> int:
    """How many requests of a tenant with a limit of two a minute were admitted."""
    usage, admitted = open_usage_limits(url, 5.0, mode), 0
    try:
        with pytest.raises(Overloaded, match="left"):
            while admitted < 9:
                async with usage.quotas.held(tenant, TenantLimits(200, 2)) as quota:
                    await quota.reserve(50, max_new_tokens=50)
                    quota.record_generated(50)
                    admitted += 1
    finally:
        await usage.aclose()
    return admitted


def digest_on(cluster: ValkeyCluster, number: int) -> str:
    """Of a value that the primary of this number keeps."""
    return next(each for each in DIGESTS if cluster.primary_of(redis_key(each)) is cluster.servers[number])


@pytest.mark.asyncio
async def test_everything_works_on_a_cluster(cluster: ValkeyCluster) -> None:
    await check_redis(cluster.url, has_limits=True)
    async with opened(cluster.url) as (store, seen):
        lock = open_build_lock(store)
        for digest in DIGESTS:
            await store.put(digest, value_of(digest))
            assert await store.get(digest) == await lock.claim(digest) == value_of(digest)
        assert seen == {Outcome.STORED: 30, Outcome.HIT: 30}
    for server in cluster.servers:
        assert any(key.startswith(b"presift:v") for key in server.scan_iter())


@pytest.mark.asyncio
@pytest.mark.parametrize("tenant", ["acme", "other", "third", "a{b}c", "}{", "{}"])
async def test_tenants_limits_hold_on_a_cluster(tenant: str, cluster: ValkeyCluster) -> None:
    assert await run_out(cluster.url, tenant) == 2


@pytest.mark.asyncio
async def test_what_is_given_back_can_be_used(cluster: ValkeyCluster) -> None:
    usage = open_usage_limits(cluster.url, 5.0, FailureMode.CLOSED)
    for tenant in ("one", "two", "three", "four") * 5:  # each of which gives all back
        async with usage.quotas.held(tenant, TenantLimits(100, 1)) as quota:
            await quota.reserve_estimate(100, max_new_tokens=0)
            await quota.reserve(0, max_new_tokens=1)
    await usage.aclose()


@pytest.mark.asyncio
async def test_a_plain_url_of_one_of_its_servers_is_refused_with_the_fix(cluster: ValkeyCluster) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await check_redis(cluster.url_of("redis", cluster.ports[0]), has_limits=True)
    assert refused.value.value == "a server in cluster mode" and "redis+cluster://" in str(refused.value.limit)


@pytest.mark.asyncio
async def test_an_unknown_parameter_is_refused() -> None:
    for parameter in ("shards=3", "decode_responses=true"):
        with pytest.raises(InvalidRequest, match="an unknown parameter") as refused:
            RedisClient(f"redis+cluster://:hunter2@one?{parameter}", PATIENT)
        assert "hunter2" not in str(refused.value) and "TLS" in str(refused.value.limit)


@pytest.mark.asyncio
async def test_a_cluster_without_slots_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    options = ("--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--save", "")
    with run_valkey(tmp_path / "node", *options) as process, Redis(port=port) as server:
        try:
            wait_until(server.ping)
            await check_redis(f"redis+cluster://127.0.0.1:{port}", has_limits=True)
        finally:
            process.kill()
    assert "does not answer: CLUSTERDOWN" in caplog.text


def rights() -> list[str]:
    """Those of the operators' manual: for one server, and what a cluster adds."""
    manual = SECURITY.read_text()
    command = re.search(r"^ACL SETUSER presift (.*?)^```", manual, re.DOTALL | re.MULTILINE)
    added = re.search(r"In a Redis Cluster add `(.*?)`", manual)
    assert command and added
    return [*command[1].replace("PASSWORD", "user-s3cret").split(), *added[1].split()]


def set_user(cluster: ValkeyCluster, number: int, given: list[str]) -> None:
    cluster.servers[number].execute_command("ACL", "SETUSER", "presift", "reset", *given)


@pytest.mark.asyncio
async def test_the_rights_in_the_manual_suffice(cluster: ValkeyCluster) -> None:
    for number in range(3):
        set_user(cluster, number, rights())
    await check_redis(cluster.url.replace(f":{PASSWORD}", "presift:user-s3cret"), has_limits=True)


# +hello and +select are for one server.
@pytest.mark.asyncio
@pytest.mark.parametrize(
    "missing", [each for each in rights() if each[0] in "~+" and each not in ("+hello", "+select")]
)
async def test_a_right_that_one_server_lacks_is_named(missing: str, cluster: ValkeyCluster) -> None:
    for number in range(3):
        is_lacking = number == 1 or missing == "+cluster|slots"  # which any one is asked
        set_user(cluster, number, [each for each in rights() if each != missing or not is_lacking])
    with pytest.raises(InvalidRequest) as refused:
        await check_redis(cluster.url.replace(f":{PASSWORD}", "presift:user-s3cret"), has_limits=True)
    assert "(NOPERM)" in str(refused.value.value) and "ops/security.md" in str(refused.value.limit)
    assert "s3cret" not in str(refused.value)


@pytest.mark.asyncio
async def test_a_wrong_password_is_named_and_not_shown(cluster: ValkeyCluster) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await check_redis(cluster.url.replace(PASSWORD, "wrong-s3cret"), has_limits=True)
    assert "(WRONGPASS)" in str(refused.value.value) and "s3cret" not in str(refused.value)


@pytest.mark.asyncio
async def test_keys_on_their_way_to_another_server_are_found_by_many_at_once(cluster: ValkeyCluster) -> None:
    digest = DIGESTS[0]
    slot, source = key_slot(redis_key(digest).encode()), cluster.primary_of(redis_key(digest))
    destination = next(each for each in cluster.servers if each is not source)
    async with opened(cluster.url) as (store, _):
        await store.put(digest, value_of(digest))

        async def all_find_it() -> None:
            for _ in range(20):
                assert await asyncio.gather(*(store.get(digest) for _ in range(8))) == [value_of(digest)] * 8

        await all_find_it()
        try:
            cluster.move_half(slot, source, destination)
            await all_find_it()
            cluster.move_rest(slot, source, destination)
            await all_find_it()
        finally:
            cluster.move_half(slot, destination, source)
            cluster.move_rest(slot, destination, source)
        await all_find_it()


@pytest.mark.asyncio
async def test_no_caller_gets_the_reply_of_another_that_gave_up(cluster: ValkeyCluster) -> None:
    client, pauses = RedisClient(cluster.url, CacheLimits(rest_after_failures=1 << 30)), random.Random(0)
    for number in range(30):
        await client.execute("SET", f"presift:{number}", str(number), "PX", 60_000, timeout_s=5.0)

    async def ask(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pauses.uniform(0.0, 0.02)):
                reply = await client.execute("GETRANGE", f"presift:{number}", 0, 9, timeout_s=5.0)
                assert reply == str(number).encode()

    for _ in range(30):
        await asyncio.gather(*(ask(number) for number in range(30)))
    for number in range(30):
        assert await client.execute("GETRANGE", f"presift:{number}", 0, 9, timeout_s=5.0) == str(number).encode()
    await client.aclose()


@pytest.mark.asyncio
async def test_a_node_that_hangs_is_passed_over_though_a_look_up_is_shorter(cluster: ValkeyCluster) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    url = cluster.url_of("redis+cluster", server.sockets[0].getsockname()[1], cluster.ports[0])
    async with opened(url, CacheLimits(put_timeout_s=0.1, rest_s=0.05)) as (store, seen):
        await put_at_last(store, seen, DIGESTS[0])
    server.close()


async def put_at_last(store: Store, seen: Counter[Outcome], digest: str) -> None:
    before = seen[Outcome.STORED]
    async with asyncio.timeout(30):
        while seen[Outcome.STORED] == before:
            await store.put(digest, value_of(digest))
            await asyncio.sleep(0.05)


async def found_at_last(store: Store, digest: str) -> None:
    async with asyncio.timeout(30):
        while (found := await store.get(digest)) is None:
            await asyncio.sleep(0.05)
    assert found == value_of(digest)


@pytest.mark.asyncio
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
async def test_a_primary_is_replaced_while_requests_go_on(end: signal.Signals, with_replica: ValkeyCluster) -> None:
    lost, other = digest_on(with_replica, 0), digest_on(with_replica, 1)
    limits = CacheLimits(timeout_s=0.5, put_timeout_s=0.5, rest_s=0.1)
    async with opened(with_replica.url, limits) as (store, seen):
        await store.put(lost, value_of(lost))
        await store.put(other, value_of(other))
        with_replica.servers[0].wait(1, 10_000)
        os.kill(with_replica.processes[0].pid, end)
        failing_over = asyncio.create_task(asyncio.to_thread(with_replica.wait_for_the_failover))
        while not failing_over.done():
            for digest in (lost, other):
                assert await store.get(digest) in (None, value_of(digest))
            await asyncio.sleep(0.02)
        await failing_over
        await found_at_last(store, lost)
        await found_at_last(store, other)
        await put_at_last(store, seen, lost)
        assert seen[Outcome.CORRUPT] == 0 and seen[Outcome.ERROR] + seen[Outcome.TIMEOUT] > 0
    assert await run_out(with_replica.url_of("redis+cluster", *with_replica.ports[1:3])) == 2


@pytest.mark.asyncio
async def test_a_lease_on_a_primary_that_dies_holds_no_longer_than_a_failover(with_replica: ValkeyCluster) -> None:
    digest = digest_on(with_replica, 0)
    async with holder(with_replica.url) as dead, holder(with_replica.url) as other:
        assert await dead.claim(digest) is None
        await dead._leases.aclose()  # its process renews nothing any more
        with_replica.processes[0].kill()
        async with asyncio.timeout(30):
            assert await other.claim(digest) is None  # nobody answers: compute
            await asyncio.to_thread(with_replica.wait_for_the_failover)
            while await other.claim(digest) is not None or not other.held:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def holder(url: str) -> AsyncIterator[RedisBuildLock]:
    client = RedisClient(url, PATIENT)
    try:
        yield RedisBuildLock(RedisStore(client, PATIENT), wait_s=5.0, lease_s=1.0)
    finally:
        await client.aclose()


@pytest.mark.asyncio
async def test_a_cluster_that_is_down_is_a_miss_and_named(
    with_replica: ValkeyCluster, caplog: pytest.LogCaptureFixture
) -> None:
    digest = digest_on(with_replica, 1)
    async with opened(with_replica.url) as (store, seen):
        await store.put(digest, value_of(digest))
        with_replica.processes[2].kill()  # it has no replica
        wait_until(lambda: with_replica.servers[1].cluster("INFO")["cluster_state"] == "fail")
        for _ in range(20):
            assert await store.get(digest) is None
    assert seen[Outcome.ERROR] >= 20
    assert "the cache server refuses commands: CLUSTERDOWN" in caplog.text
    caplog.clear()
    await check_redis(with_replica.url, has_limits=True)  # a failover may end it
    assert "the cache server does not answer" in caplog.text  # or CLUSTERDOWN, if the first key is on another one
