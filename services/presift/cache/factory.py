"""Opens the store of a URL: memory://, or that of a Redis server or cluster."""

from __future__ import annotations

from presift.cache.build_lock import BuildLock, NoBuildLock
from presift.cache.memory_store import MemoryStore
from presift.cache.redis_build_lock import WAIT_S, RedisBuildLock
from presift.cache.redis_client import RedisClient
from presift.cache.redis_store import RedisStore
from presift.cache.redis_url import CLUSTER_SCHEMES, SENTINEL_SCHEMES
from presift.cache.store import CacheLimits, CacheObserver, Store, ignore
from presift.core.errors import InvalidRequest

_SCHEMES = ("memory", "redis", "rediss", "unix", *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)


def is_memory(url: str) -> bool:
    """Whether a cache URL is memory://, so that nothing is shared with other processes."""
    return _scheme_of(url) == "memory"


def open_store(url: str, limits: CacheLimits | None = None, observe: CacheObserver = ignore, salt: str = "") -> Store:
    """The store at `url`, not yet connected; a server's values are authenticated with `salt`.

    Raises InvalidRequest, without the URL: it may contain a password.
    """
    if _scheme_of(url) not in _SCHEMES:
        raise InvalidRequest("cache_url", "an unknown scheme", f"one of {', '.join(_SCHEMES)}")
    limits = limits or CacheLimits()
    if is_memory(url):
        return MemoryStore(limits, observe)
    return RedisStore(RedisClient(url, limits), limits, observe, salt)


def open_build_lock(store: Store, observe: CacheObserver = ignore, wait_s: float = WAIT_S) -> BuildLock:
    """The build lock of `store`, over the same connections; `wait_s` as in RedisBuildLock."""
    if not isinstance(store, RedisStore):
        return NoBuildLock()
    return RedisBuildLock(store, observe, wait_s)


def _scheme_of(url: str) -> str:
    return url.partition("://")[0].lower()
