"""Opens the store of a URL: memory://, redis://, rediss:// or unix://."""

from __future__ import annotations

from collections.abc import Callable

from presift.cache.build_lock import BuildLock, NoBuildLock
from presift.cache.memory_store import MemoryStore
from presift.cache.redis_build_lock import WAIT_S, RedisBuildLock
from presift.cache.redis_client import RedisClient
from presift.cache.redis_store import RedisStore
from presift.cache.store import CacheLimits, CacheObserver, Store, ignore
from presift.core.errors import InvalidRequest


def open_store(url: str, limits: CacheLimits | None = None, observe: CacheObserver = ignore) -> Store:
    """The store at `url`, not yet connected. Raises InvalidRequest, without the URL: it may contain a password."""
    scheme = url.partition("://")[0].lower()
    if scheme not in _STORES:
        raise InvalidRequest("cache_url", "an unknown scheme", f"one of {', '.join(_STORES)}")
    return _STORES[scheme](url, limits or CacheLimits(), observe)


def open_build_lock(
    store: Store, limits: CacheLimits | None = None, observe: CacheObserver = ignore, wait_s: float = WAIT_S
) -> BuildLock:
    """The build lock of `store`, over the same connections; `wait_s` as in RedisBuildLock."""
    if not isinstance(store, RedisStore):
        return NoBuildLock()
    return RedisBuildLock(store.client, limits or CacheLimits(), observe, wait_s)


def _memory(url: str, limits: CacheLimits, observe: CacheObserver) -> Store:
    return MemoryStore(limits, observe)


def _redis(url: str, limits: CacheLimits, observe: CacheObserver) -> Store:
    return RedisStore(RedisClient(url, limits), limits, observe)


_STORES: dict[str, Callable[[str, CacheLimits, CacheObserver], Store]] = {
    "memory": _memory,
    "redis": _redis,
    "rediss": _redis,
    "unix": _redis,
}
