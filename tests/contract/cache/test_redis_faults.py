"""A Redis that is down, slow, locked, lying or full of garbage is a miss: counted, quick, and never an exception.

Real sockets throughout: a Valkey server, and a proxy before it that can be told to misbehave.
"""

import asyncio
import contextlib
import hashlib
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import zstandard
from redis import Redis

from presift.cache import codec
from presift.cache.codec import decode, encode
from presift.cache.embedded import embedded_cache
from presift.cache.factory import open_store
from presift.cache.ongoing_failures import QUIET_S, OngoingFailures
from presift.cache.redis_store import RedisStore, redis_key
from presift.cache.store import CacheLimits, Operation, Outcome, Store
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo

LIMITS = CacheLimits()  # the defaults: 50 ms
PATIENT = replace(LIMITS, timeout_s=5.0, put_timeout_s=5.0)
RESTLESS = replace(LIMITS, rest_after_failures=1_000_000)
SLACK_S = 0.25  # two cores, shared with other tests
PASSWORD = "hunter2-s3cret"
MODEL = ModelInfo("draft", "r1", "sha256:00", 32_768, 24, 2, 151_936)


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def compressed(seed: int = 0, prompt_tokens: int = 64) -> CompressedPrompt:
    kept = np.random.default_rng(seed).random(prompt_tokens) < 0.5
    return CompressedPrompt(TokenMask(kept), (seed,), 0.5, MODEL)


@dataclass
class Observed:
    """A store, what it reported, and how long its slowest get took."""

    store: Store
    seen: Counter[tuple[Operation, Outcome]]
    slowest_s: float = 0.0

    async def get(self, name: str) -> CompressedPrompt | None:
        began = time.perf_counter()
        value = await self.store.get(digest(name))
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
        return value

    async def get_at_last(self, name: str) -> CompressedPrompt:
        """For a server that is well again: on a busy machine the first answers may still be late."""
        async with asyncio.timeout(10.0):
            while (value := await self.store.get(digest(name))) is None:
                await asyncio.sleep(0.05)
        return value


@contextlib.asynccontextmanager
async def opened(url: str, limits: CacheLimits = LIMITS) -> AsyncIterator[Observed]:
    seen: Counter[tuple[Operation, Outcome]] = Counter()
    store = open_store(url, limits, lambda operation, outcome: seen.update([(operation, outcome)]))
    try:
        yield Observed(store, seen)
    finally:
        await store.aclose()


@dataclass
class Proxy:
    """TCP before the unix socket at `path`; every answer waits for `delay_s`."""

    path: str
    delay_s: float = 0.0
    accepted: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        from_server, to_server = await asyncio.open_unix_connection(self.path)
        async with closing(to_server):
            await asyncio.gather(self._pump(reader, to_server, False), self._pump(from_server, writer, True))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        while data := await reader.read(65_536):
            if is_answer:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server; each connection is closed when `talk` is done with it, and all of them at the end."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        async with closing(writer):
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await talk(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks))


@pytest.fixture(scope="module")
def valkey_path() -> Iterator[str]:
    with embedded_cache() as cache:
        yield cache.url.removeprefix("unix://")


@pytest.fixture
def admin(valkey_path: str) -> Iterator[Redis]:
    with Redis(unix_socket_path=valkey_path) as client:
        client.flushall()
        yield client


@pytest.fixture
async def proxy(valkey_path: str) -> AsyncIterator[tuple[Proxy, str]]:
    proxy = Proxy(valkey_path)
    async with listening(proxy.serve) as url:
        yield proxy, url


def closed_port_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "url",
    [closed_port_url(), "unix:///nowhere/valkey.sock", "redis://name.invalid"],
    ids=["closed port", "no socket", "unknown name"],
)
async def test_a_server_that_is_down_is_a_miss(url: str) -> None:
    async with opened(url, RESTLESS) as cache:
        for _ in range(5):
            assert await cache.get("x") is None and not cache.store.is_available
        await cache.store.put(digest("x"), compressed())
    assert cache.seen.total() == 6
    assert cache.seen[Operation.GET, Outcome.ERROR] + cache.seen[Operation.GET, Outcome.TIMEOUT] == 5
    assert cache.seen[Operation.PUT, Outcome.ERROR] + cache.seen[Operation.PUT, Outcome.TIMEOUT] == 1
    assert cache.slowest_s < LIMITS.timeout_s + SLACK_S


@pytest.mark.asyncio
async def test_a_server_that_never_answers_is_a_miss_after_50_ms(admin: Redis, valkey_path: str) -> None:
    async with opened(f"unix://{valkey_path}", RESTLESS) as cache:
        await cache.store.put(digest("x"), compressed())
        admin.client_pause(400)
        assert await cache.get("x") is None
        assert cache.seen[Operation.GET, Outcome.TIMEOUT] == 1
        assert LIMITS.timeout_s * 0.9 < cache.slowest_s < LIMITS.timeout_s + SLACK_S
        assert await cache.get_at_last("x") == compressed()


@pytest.mark.asyncio
async def test_a_server_that_accepts_but_is_mute_is_a_miss_while_connecting() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(mute) as url, opened(f"redis://:{PASSWORD}@{url.removeprefix('redis://')}") as cache:
        assert await cache.get("x") is None
        assert cache.slowest_s < LIMITS.timeout_s + SLACK_S
    assert cache.seen == {(Operation.GET, Outcome.TIMEOUT): 1}


@pytest.mark.asyncio
async def test_a_late_answer_is_not_taken_for_the_next_one(proxy: tuple[Proxy, str], admin: Redis) -> None:
    server, url = proxy
    async with opened(url, replace(RESTLESS, timeout_s=0.2, put_timeout_s=5.0)) as cache:
        for n in range(8):
            await cache.store.put(digest(str(n)), compressed(n))
        for n in range(8):
            server.delay_s = 0.3 if n % 2 else 0.0
            assert await cache.get(str(n)) == (None if n % 2 else compressed(n))
    assert cache.seen[Operation.GET, Outcome.TIMEOUT] == 4 and cache.seen[Operation.GET, Outcome.HIT] == 4
    assert admin.dbsize() == 8  # nothing was dropped as corrupt


@pytest.mark.asyncio
async def test_the_wait_for_a_connection_counts(admin: Redis, valkey_path: str) -> None:
    async with opened(f"unix://{valkey_path}", replace(RESTLESS, max_connections=2)) as cache:
        admin.client_pause(400)
        assert await asyncio.gather(*(cache.get(str(n)) for n in range(20))) == [None] * 20
        assert cache.slowest_s < LIMITS.timeout_s + SLACK_S
        assert cache.seen == {(Operation.GET, Outcome.TIMEOUT): 20}
        await asyncio.sleep(0.5)
        await cache.store.put(digest("x"), compressed())
        assert await cache.get_at_last("x") == compressed()


@pytest.mark.asyncio
async def test_connections_are_bounded(proxy: tuple[Proxy, str], admin: Redis) -> None:
    server, url = proxy
    async with opened(url, replace(PATIENT, max_connections=4)) as cache:
        await asyncio.gather(*(cache.get(str(n)) for n in range(100)))
    assert cache.seen == {(Operation.GET, Outcome.MISS): 100}
    assert server.accepted <= 4


@pytest.mark.asyncio
async def test_a_dead_server_is_left_alone_and_found_again(
    proxy: tuple[Proxy, str], admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server, url = proxy
    async with opened(url, replace(LIMITS, rest_s=0.3, put_timeout_s=5.0)) as cache:
        await cache.store.put(digest("x"), compressed())
        server.delay_s = 0.15
        for _ in range(50):
            assert await cache.get("x") is None
        assert cache.seen[Operation.GET, Outcome.TIMEOUT] >= LIMITS.rest_after_failures
        assert cache.seen[Operation.GET, Outcome.SKIPPED] >= 40
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.name for record in warnings] == ["presift.cache.redis_client"]
        server.delay_s = 0.0
        assert await cache.get_at_last("x") == compressed()


@pytest.mark.asyncio
async def test_a_server_that_restarts_costs_at_most_misses(caplog: pytest.LogCaptureFixture) -> None:
    with embedded_cache() as first:
        path = first.url.removeprefix("unix://")
        proxy = Proxy(path)
        async with listening(proxy.serve) as url, opened(url, PATIENT) as cache:
            await cache.store.put(digest("x"), compressed())
            first.process.kill()
            first.process.wait()
            assert await cache.get("x") is None and not cache.store.is_available
            with embedded_cache() as second:
                proxy.path = second.url.removeprefix("unix://")
                await cache.store.put(digest("x"), compressed())
                assert await cache.get("x") == compressed() and cache.store.is_available


def _garbage() -> dict[str, bytes]:
    good = encode(digest("x"), compressed(), 1 << 20)
    return {
        "text": b"hello",
        "one byte": b"\x00",
        "truncated": good[:-1],
        "longer": good + b"\x00",
        "of another key": encode(digest("y"), compressed(), 1 << 20),
        "of another salt": encode(digest("x"), compressed(), 1 << 20, "a forger's"),
        "huge": bytes(64 << 20),
    }


def _of_other_versions() -> dict[str, bytes]:
    good, bomb = encode(digest("x"), compressed(), 1 << 20), zstandard.compress(bytes(64 << 20))
    return {
        "older": b"PSC\x01" + good[4:],
        "later": b"PSC\x04" + bytes(40),
        "later, and larger than any of this version": good + bytes(2 << 20),
        "a message that this version refuses": _sealed(zstandard.compress(b"\x7a\x03new")),
        "a larger message": _sealed(bomb),
    }


def _sealed(frame: bytes) -> bytes:
    return codec._MAGIC + codec._tag(digest("x"), frame, "") + frame


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", _garbage())
async def test_garbage_is_a_miss_and_is_dropped(kind: str, admin: Redis, valkey_path: str) -> None:
    admin.set(redis_key(digest("x")), _garbage()[kind])
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        assert await cache.get("x") is None
        assert cache.seen == {(Operation.GET, Outcome.CORRUPT): 1}
        assert admin.dbsize() == 0
        await cache.store.put(digest("x"), compressed())
        assert await cache.get("x") == compressed()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", _of_other_versions())
async def test_a_value_of_another_version_is_a_miss_and_is_left_alone(
    kind: str, admin: Redis, valkey_path: str
) -> None:
    stored = _of_other_versions()[kind]
    admin.set(redis_key(digest("x")), stored)
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        assert await cache.get("x") is None
        assert cache.seen == {(Operation.GET, Outcome.OTHER_VERSION): 1}
        assert admin.get(redis_key(digest("x"))) == stored


@pytest.mark.asyncio
async def test_every_flipped_byte_is_a_miss_and_is_dropped(admin: Redis, valkey_path: str) -> None:
    good = encode(digest("x"), compressed(), 1 << 20)
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        for position in (each for each in range(len(good)) if each != 3):  # that is the version
            damaged = bytearray(good)
            damaged[position] ^= 0xFF
            admin.set(redis_key(digest("x")), bytes(damaged))
            assert await cache.get("x") is None
            assert admin.dbsize() == 0
    assert cache.seen == {(Operation.GET, Outcome.CORRUPT): len(good) - 1}


@pytest.mark.asyncio
async def test_a_key_of_another_type_is_garbage_too(admin: Redis, valkey_path: str) -> None:
    admin.rpush(redis_key(digest("x")), "a", "b")
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        assert await cache.get("x") is None
    assert cache.seen == {(Operation.GET, Outcome.CORRUPT): 1} and admin.dbsize() == 0


@pytest.mark.asyncio
async def test_a_full_server_refuses_and_reads_go_on(admin: Redis, valkey_path: str) -> None:
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        await cache.store.put(digest("x"), compressed())
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        try:
            for n in range(10):
                await cache.store.put(digest(str(n)), compressed())
            assert not cache.store.is_available
            assert await cache.get("x") == compressed()  # so many refusals are no reason to rest
            assert cache.store.is_available
        finally:
            admin.config_set("maxmemory", 256 << 20)
            admin.config_set("maxmemory-policy", "allkeys-lru")
    assert cache.seen[Operation.PUT, Outcome.ERROR] == 10


@pytest.mark.asyncio
async def test_a_refusal_is_logged_once_with_its_code(
    admin: Redis, valkey_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        assert isinstance(cache.store, RedisStore)
        cache.store.client._failures = OngoingFailures(lambda: now[0])
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        try:
            for n in range(10):  # reads succeed meanwhile: that is no change of state
                await cache.store.put(digest(str(n)), compressed())
                await cache.get("x")
        finally:
            admin.config_set("maxmemory", 256 << 20)
            admin.config_set("maxmemory-policy", "allkeys-lru")
        now[0] += QUIET_S
        for _ in range(3):
            await cache.store.put(digest("x"), compressed())
    assert [each.getMessage() for each in caplog.records] == [
        "the cache server refuses commands: OOM",
        "the cache server works again: no failure for 60 s",
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize("stale", ["READONLY", "LOADING", "MASTERDOWN"])
async def test_after_a_failover_the_new_primary_is_found(stale: str, admin: Redis, valkey_path: str) -> None:
    """The connection to the old one is good, so only its answers can tell."""
    moved = False
    lookups: list[bool] = []
    to_new = Proxy(valkey_path)

    async def name(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lookups.append(moved)
        if moved:
            return await to_new.serve(reader, writer)
        while await reader.read(1 << 16):
            writer.write(f"-{stale} not the primary\r\n".encode())

    async with listening(name) as url, opened(url, replace(PATIENT, rest_s=0.05)) as cache:
        await cache.store.put(digest("x"), compressed())
        assert cache.seen == {(Operation.PUT, Outcome.ERROR): 1}
        moved = True
        async with asyncio.timeout(60):
            while not cache.seen[Operation.PUT, Outcome.STORED]:
                await cache.store.put(digest("x"), compressed())
                await asyncio.sleep(0.02)
        assert await cache.get("x") == compressed()
    assert lookups[-1]


@pytest.mark.asyncio
async def test_a_lasting_replica_costs_few_connections() -> None:
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.read(1 << 16):
            writer.write(b"-READONLY a replica\r\n")
        await asyncio.Event().wait()  # until it is cancelled

    async with listening(refuse) as url, opened(url, replace(PATIENT, rest_s=60.0)) as cache:
        for n in range(30):
            await cache.store.put(digest(str(n)), compressed())
    assert cache.seen == {(Operation.PUT, Outcome.ERROR): 30} and connections <= 2


@pytest.mark.asyncio
@pytest.mark.parametrize("reason", ["MOVED 1 127.0.0.1:1", "READONLY a replica", "LOADING it", "NOPERM no", "OOM full"])
async def test_a_server_that_refuses_every_command_is_not_available(reason: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(f"-{reason}\r\n".encode())
        await asyncio.Event().wait()  # until it is cancelled

    async with listening(refuse) as url, opened(url, PATIENT) as cache:
        assert await cache.get("x") is None and not cache.store.is_available
        await cache.store.put(digest("x"), compressed())
        assert not cache.store.is_available


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$5\r\nhi\r\n", b"$x\r\n", b"*-7\r\n", b"\xff" * 99]
)
async def test_something_that_is_no_redis_is_a_miss(nonsense: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(nonsense)

    async with listening(talk) as url, opened(url, RESTLESS) as cache:
        assert await cache.get("x") is None
        await cache.store.put(digest("x"), compressed())
    assert cache.seen.total() == 2 and not cache.seen[Operation.GET, Outcome.HIT]


@pytest.mark.asyncio
async def test_a_wrong_password_is_a_miss_and_no_password_is_shown(
    admin: Redis, valkey_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    admin.config_set("requirepass", "the right one")
    shown = ""
    try:
        for login in (f":{PASSWORD}@", f"user:{PASSWORD}@", ""):
            async with opened(f"unix://{login}{valkey_path}", PATIENT) as cache:
                for _ in range(LIMITS.rest_after_failures):
                    assert await cache.get("x") is None
                await cache.store.put(digest("x"), compressed())
                shown += f"{cache.store!r} {vars(cache.store)!r}"
            assert cache.seen[Operation.GET, Outcome.ERROR] == LIMITS.rest_after_failures
            assert cache.seen.total() == LIMITS.rest_after_failures + 1
        async with opened(f"unix://:the%20right%20one@{valkey_path}", PATIENT) as cache:
            await cache.store.put(digest("x"), compressed())
            assert await cache.get("x") == compressed()
    finally:
        with Redis(unix_socket_path=valkey_path, password="the right one") as client:
            client.config_set("requirepass", "")
    assert "WRONGPASS" in caplog.text and "NOAUTH" in caplog.text
    assert PASSWORD not in caplog.text + shown


@pytest.mark.asyncio
async def test_a_password_that_the_server_echoes_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(f"-ERR unknown command 'AUTH', with args beginning with: '{PASSWORD}'\r\n".encode())

    async with listening(echo) as url, opened(f"redis://:{PASSWORD}@{url.removeprefix('redis://')}") as cache:
        for _ in range(10):
            assert await cache.get("x") is None
    assert cache.seen.total() == 10 and not cache.seen[Operation.GET, Outcome.MISS]
    assert "presift.cache" in caplog.text and PASSWORD not in caplog.text


@pytest.mark.asyncio
async def test_a_cancelled_get_leaves_the_store_usable(proxy: tuple[Proxy, str], admin: Redis) -> None:
    server, url = proxy
    async with opened(url, replace(PATIENT, max_connections=1)) as cache:
        await cache.store.put(digest("x"), compressed(1))
        await cache.store.put(digest("y"), compressed(2))
        server.delay_s = 0.1
        for _ in range(5):
            task = asyncio.create_task(cache.get("x"))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        server.delay_s = 0.0
        assert await cache.get("y") == compressed(2)


@pytest.mark.asyncio
async def test_no_cancellation_is_lost_whenever_it_comes(admin: Redis, valkey_path: str) -> None:
    async with opened(f"unix://{valkey_path}", PATIENT) as cache:
        await cache.get("x")

        async def get_for_a_second() -> None:
            began = time.perf_counter()
            while time.perf_counter() - began < 1.0:
                await cache.get("x")

        for n in range(50):
            task = asyncio.create_task(get_for_a_second())
            await asyncio.sleep(0.00005 * n)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()


@pytest.mark.asyncio
async def test_what_is_stored_has_a_time_to_live_and_a_versioned_key(admin: Redis, valkey_path: str) -> None:
    async with opened(f"unix://{valkey_path}", replace(PATIENT, ttl_s=100.0)) as cache:
        await cache.store.put(digest("x"), compressed())
    key = f"presift:v3:{digest('x')}"
    assert admin.keys() == [key.encode()]
    assert 90 < int(admin.ttl(key)) <= 100
    stored = admin.get(key)
    assert isinstance(stored, bytes) and decode(digest("x"), stored) == compressed()
