"""What every store promises, asked of the in-memory one and of Redis over a real Valkey server."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from presift.cache.build_lock import NoBuildLock
from presift.cache.embedded import embedded_cache
from presift.cache.factory import open_build_lock, open_store
from presift.cache.memory_store import ENTRY_OVERHEAD_BYTES, MemoryStore
from presift.cache.redis_build_lock import RedisBuildLock
from presift.cache.redis_store import RedisStore
from presift.cache.store import CacheLimits, Operation, Outcome, Store
from presift.core.errors import InvalidRequest
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo

MODEL = ModelInfo("draft", "r1", "sha256:00", 32_768, 24, 2, 151_936)
PATIENT = CacheLimits(timeout_s=5.0, put_timeout_s=5.0)  # these tests are about meaning, not about time


def digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def compressed(seed: int, prompt_tokens: int = 512) -> CompressedPrompt:
    """A value that can hardly be compressed further: about prompt_tokens / 8 bytes."""
    kept = np.random.default_rng(seed).random(prompt_tokens) < 0.5
    return CompressedPrompt(TokenMask(kept), (seed,), 0.5, MODEL)


@dataclass
class Bench:
    """One kind of store: how to open it, how to let time pass there, and what it reported."""

    url: str
    now_s: float = 0.0
    seen: Counter[tuple[Operation, Outcome]] = field(default_factory=Counter)
    opened: list[Store] = field(default_factory=list)

    def open(self, limits: CacheLimits = PATIENT) -> Store:
        if self.url.startswith("memory"):
            self.opened.append(MemoryStore(limits, self.observe, lambda: self.now_s))
        else:
            self.opened.append(open_store(self.url, limits, self.observe))
        return self.opened[-1]

    async def advance(self, seconds: float) -> None:
        self.now_s += seconds
        if not self.url.startswith("memory"):
            await asyncio.sleep(seconds)

    def observe(self, operation: Operation, outcome: Outcome) -> None:
        self.seen[operation, outcome] += 1


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    with embedded_cache() as cache:
        yield cache.url


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest, valkey_url: str) -> AsyncIterator[Bench]:
    bench = Bench("memory://" if request.param == "memory" else valkey_url)
    yield bench
    for store in bench.opened:
        await store.aclose()


@pytest.mark.asyncio
async def test_a_value_comes_back_and_only_under_its_digest(bench: Bench) -> None:
    store = bench.open()
    await store.put(digest("round trip"), compressed(1))
    assert await store.get(digest("round trip")) == compressed(1)
    assert await store.get(digest("another")) is None
    assert bench.seen == {
        (Operation.PUT, Outcome.STORED): 1,
        (Operation.GET, Outcome.HIT): 1,
        (Operation.GET, Outcome.MISS): 1,
    }


@pytest.mark.asyncio
async def test_the_last_put_wins(bench: Bench) -> None:
    store = bench.open()
    await store.put(digest("twice"), compressed(1))
    await store.put(digest("twice"), compressed(2))
    assert await store.get(digest("twice")) == compressed(2)


@pytest.mark.asyncio
async def test_a_value_expires(bench: Bench) -> None:
    store = bench.open(replace(PATIENT, ttl_s=0.5))
    await store.put(digest("expires"), compressed(1))
    await bench.advance(0.1)
    assert await store.get(digest("expires")) is not None
    await bench.advance(0.5)
    assert await store.get(digest("expires")) is None
    assert bench.seen[Operation.GET, Outcome.MISS] == 1


@pytest.mark.asyncio
async def test_a_value_over_the_bound_is_refused_and_counted(bench: Bench) -> None:
    store = bench.open(replace(PATIENT, max_value_bytes=400))
    await store.put(digest("too large"), compressed(1, prompt_tokens=8_192))
    assert await store.get(digest("too large")) is None
    await store.put(digest("small"), compressed(1, prompt_tokens=512))
    assert await store.get(digest("small")) is not None
    assert bench.seen[Operation.PUT, Outcome.TOO_LARGE] == 1
    assert bench.seen[Operation.PUT, Outcome.STORED] == 1


@pytest.mark.asyncio
async def test_many_at_once_each_get_their_own(bench: Bench) -> None:
    store = bench.open()
    await asyncio.gather(*(store.put(digest(n), compressed(n)) for n in range(100)))
    values = await asyncio.gather(*(store.get(digest(n)) for n in range(100)))
    assert values == [compressed(n) for n in range(100)]


@pytest.mark.asyncio
async def test_the_memory_store_drops_the_least_recently_used() -> None:
    bench = Bench("memory://")
    store = bench.open(replace(PATIENT, memory_bytes=3 * (ENTRY_OVERHEAD_BYTES + 250)))
    for n in range(3):
        await store.put(digest(n), compressed(n))
    assert await store.get(digest(0)) is not None  # so that 1 is the oldest
    await store.put(digest(3), compressed(3))
    assert [n for n in range(4) if await store.get(digest(n))] == [0, 2, 3]


@pytest.mark.asyncio
async def test_the_embedded_server_drops_the_least_recently_used() -> None:
    with embedded_cache(memory_bytes=4 << 20) as cache:
        bench = Bench(cache.url)
        store = bench.open()
        for n in range(1_000):
            await store.put(digest(n), compressed(n, prompt_tokens=65_536))
        kept = [n for n in range(1_000) if await store.get(digest(n))]
        await store.aclose()
    assert bench.seen[Operation.PUT, Outcome.STORED] == 1_000
    assert 50 < len(kept) < 600 and np.mean(kept) > 500


def test_a_url_names_its_store(valkey_url: str) -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    for url in (valkey_url, "redis://localhost", "rediss://u:p@localhost:6390/1?ssl_ca_certs=/ca.pem"):
        assert isinstance(open_store(url), RedisStore)


def test_a_store_has_its_lease(valkey_url: str) -> None:
    assert isinstance(open_build_lock(open_store("memory://")), NoBuildLock)
    assert isinstance(open_build_lock(open_store(valkey_url)), RedisBuildLock)


@pytest.mark.parametrize("url", ["", "localhost", "http://u:s3cret@h", "redis://:s3cret/x@h", "redis://h:s3cret"])
def test_a_bad_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        open_store(url)
    assert refusal.value.field == "cache_url"
    assert "s3cr" not in f"{refusal.value!r} {refusal.value} {refusal.value.details} {refusal.value.__cause__}"


@pytest.mark.parametrize("field_name", ["ttl_s", "max_value_bytes", "memory_bytes", "timeout_s", "max_connections"])
def test_a_limit_that_is_not_positive_is_refused(field_name: str) -> None:
    for value in (0, -1, float("nan")):
        with pytest.raises(InvalidRequest, match=field_name):
            replace(PATIENT, **{field_name: value})
