"""A primary, a replica and a Sentinel, all real: presift follows a failover without a new URL."""

import asyncio
import contextlib
import hashlib
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from presift.cache.embedded import valkey_binary
from presift.cache.factory import open_build_lock, open_store
from presift.cache.store import CacheLimits, Operation, Outcome, Store
from presift.core.errors import InvalidRequest, Overloaded
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.admission.quotas import FailureMode
from presift.orchestrator.domain.caller import TenantLimits
from presift.orchestrator.redis_check import check_redis

from ..fakes.valkeys import PASSWORD, free_port, run_valkey, wait_until

PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0, rest_s=0.1)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
VALUE = CompressedPrompt(TokenMask(np.ones(8, np.bool_)), (1,), 1.0, ModelInfo("draft", "r1", "f", 1, 1, 1, 1))
SENTINEL_PASSWORD = "sentinel-s3cret"


@dataclass
class Watched:
    """Two servers, of which one is the primary, and the Sentinel that watches them."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]
    servers: list[Redis]
    sentinel_port: int
    sentinel: Redis

    @classmethod
    def start(cls, folder: Path) -> "Watched":
        ports = [free_port() for _ in range(3)]
        servers = [Redis(port=port, password=PASSWORD) for port in ports[:2]]
        watched = cls(folder, [], servers, ports[2], Redis(port=ports[2], password=SENTINEL_PASSWORD))
        login = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", "", "--repl-diskless-sync-delay", "0"]
        watched._run("primary", ports[0], *login)
        watched._run("replica", ports[1], *login, "--replicaof", f"127.0.0.1 {ports[0]}")
        for server in servers:
            wait_until(lambda server=server: server.ping())
        wait_until(lambda: servers[1].info("replication")["master_link_status"] == "up")
        watched._run_sentinel(ports[0])
        wait_until(lambda: watched.sentinel.sentinel_master("main")["num-slaves"] == 1)
        return watched

    @property
    def url(self) -> str:
        return self.url_of(f"127.0.0.1:{self.sentinel_port}")

    def url_of(self, hosts: str, service: str = "main", sentinel_password: str = SENTINEL_PASSWORD) -> str:
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{service}?sentinel_password={sentinel_password}"

    def fail_over(self) -> None:
        """Refused until the Sentinel knows that the replica is in step."""
        wait_until(lambda: self.sentinel.execute_command("SENTINEL FAILOVER", "main"))
        self.wait_for_the_failover()

    def wait_for_the_failover(self) -> None:
        wait_until(lambda: self.servers[1].info("replication")["role"] == "master")
        port = self.servers[1].connection_pool.connection_kwargs["port"]
        wait_until(lambda: self.sentinel.sentinel_master("main")["port"] == port)

    def _run(self, name: str, port: int, *options: str) -> None:
        self.processes.append(run_valkey(self.folder / name, "--port", str(port), *options))

    def _run_sentinel(self, primary_port: int) -> None:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self.folder}\nrequirepass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor main 127.0.0.1 {primary_port} 1\nsentinel auth-pass main {PASSWORD}\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )
        command = [str(valkey_binary()), str(config), "--sentinel"]
        self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def stop(self) -> None:
        for client in (*self.servers, self.sentinel):
            client.close()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched.start(tmp_path)
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
                    await quota.charge(50, max_new_tokens=50)
                    quota.record_generated(50)
                    admitted += 1
    finally:
        await usage.aclose()
    return admitted


@pytest.mark.asyncio
async def test_everything_works_by_a_sentinel(watched: Watched) -> None:
    await check_redis(watched.url, has_limits=True)
    async with opened(watched.url) as (store, seen):
        await store.put(DIGEST, VALUE)
        assert await store.get(DIGEST) == VALUE and seen == {Outcome.STORED: 1, Outcome.HIT: 1}
        assert await open_build_lock(store).claim(DIGEST) == VALUE
    assert await run_out(watched.url) == 2


@pytest.mark.asyncio
async def test_a_primary_that_becomes_a_replica_is_left(watched: Watched) -> None:
    async with opened(watched.url) as (store, seen):
        await store.put(DIGEST, VALUE)
        watched.servers[0].wait(1, 10_000)
        await asyncio.to_thread(watched.fail_over)
        await put_at_last(store, seen)
        assert watched.servers[1].dbsize() == 1 and await store.get(DIGEST) == VALUE
    assert await run_out(watched.url) == 2


@pytest.mark.asyncio
async def test_a_primary_that_dies_is_replaced(watched: Watched) -> None:
    async with opened(watched.url) as (store, seen):
        await store.put(DIGEST, VALUE)
        watched.servers[0].wait(1, 10_000)
        watched.processes[0].kill()
        await asyncio.to_thread(watched.wait_for_the_failover)
        async with asyncio.timeout(30):
            while (found := await store.get(DIGEST)) is None:
                await asyncio.sleep(0.05)
        assert found == VALUE  # it was replicated
        await put_at_last(store, seen)


@pytest.mark.asyncio
async def test_a_sentinel_that_hangs_is_passed_over_though_a_look_up_is_shorter(watched: Watched) -> None:
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
async def test_a_service_that_no_sentinel_knows_is_a_miss(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    url = watched.url_of(f"127.0.0.1:{watched.sentinel_port}", "other")
    async with opened(url) as (store, seen):
        for _ in range(6):
            assert await store.get(DIGEST) is None
    assert seen == {Outcome.ERROR: 5, Outcome.SKIPPED: 1}
    assert [each.getMessage() for each in caplog.records] == ["the cache server does not answer: MasterNotFoundError"]


@pytest.mark.asyncio
async def test_a_wrong_password_of_the_sentinels_is_not_shown(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    url = watched.url_of(f"127.0.0.1:{watched.sentinel_port}", sentinel_password="wrong-s3cret")
    async with opened(url) as (store, _):
        for _ in range(6):
            assert await store.get(DIGEST) is None
    assert "does not answer" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.asyncio
async def test_a_sentinel_in_place_of_a_server_is_named(watched: Watched) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await check_redis(f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{watched.sentinel_port}", has_limits=True)
    assert refused.value.value == "a server in sentinel mode" and "redis+sentinel://" in str(refused.value.limit)
