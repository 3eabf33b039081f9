"""The tests' fake Redis replies as a real server does, to the commands and scripts of the cache."""

import random
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from presift.cache.embedded import embedded_cache
from presift.cache.redis_build_lock import _CLAIM, _RELEASE, _RENEW

from ...fake_redis import FakeRedis

KEYS, HOLDERS = ("value", "value:lease"), ("one", "other")


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with embedded_cache() as cache, Redis.from_url(cache.url) as client:
        yield client


def command(rng: random.Random) -> tuple[str | bytes | int, ...]:
    key, holder = rng.choice(KEYS), rng.choice(HOLDERS)
    return rng.choice(
        (
            ("EVAL", _CLAIM, 1, key, holder, 60_000),
            ("EVAL", _RENEW, 1, key, holder, 90_000),
            ("EVAL", _RELEASE, 1, key, holder),
            ("SET", key, holder.encode(), "PX", 30_000),
            ("GETRANGE", key, 0, rng.randrange(5)),
            ("DEL", key),
        )
    )


@pytest.mark.parametrize("seed", range(20))
def test_it_replies_as_a_server_does(server: Redis, seed: int) -> None:
    server.flushall()
    fake, rng = FakeRedis(time.monotonic), random.Random(seed)
    for _ in range(50):
        sent = command(rng)
        assert fake.execute(*sent) == server.execute_command(*sent), sent
        for key in KEYS:
            left_ms = server.pttl(key)
            assert left_ms > 0 or key not in fake.values
            assert left_ms < 0 or abs((fake.expires_s[key] - fake.now()) * 1000 - left_ms) < 5_000


def test_values_expire() -> None:
    now = 0.0
    fake = FakeRedis(lambda: now)
    assert fake.execute("EVAL", _CLAIM, 1, "lease", "one", 1000) == 1
    now = 0.999
    assert fake.execute("EVAL", _CLAIM, 1, "lease", "other", 1000) == 0
    now = 1.0
    assert fake.execute("EVAL", _CLAIM, 1, "lease", "other", 1000) == 1


def test_another_script_is_no_guess() -> None:
    with pytest.raises((NotImplementedError, SyntaxError)):
        FakeRedis(time.monotonic).execute("EVAL", "for i = 1, 2 do redis.call('incr', KEYS[1]) end", 1, "key")
