"""Checks at start that the cache's server does all that presift needs of it, on keys that nothing uses."""

from __future__ import annotations

import logging
from functools import partial

from presift.cache.factory import is_memory
from presift.cache.redis_build_lock import RedisBuildLock
from presift.cache.redis_client import CacheUnavailable, RedisClient
from presift.cache.redis_store import RedisStore
from presift.cache.store import CacheLimits
from presift.core.errors import InvalidRequest
from presift.orchestrator.admission.concurrency_limit import RedisConcurrencyLimit
from presift.orchestrator.admission.token_rate_limit import RedisTokenRateLimit

# The longest wait for one answer.
CHECK_S = 3.0

# By mode or code: what the server must be instead.
_REQUIRED = {
    "NOPERM": "one whose user has the rights in ops/security.md",
    "NOAUTH": "one that accepts the URL's user and password",
    "WRONGPASS": "one that accepts the URL's user and password",
    "READONLY": "the primary, not a replica",
    "OOM": "one with free memory: raise its maxmemory, or set its maxmemory-policy to allkeys-lru",
}
_CLUSTER_URL = "redis+cluster://HOST[:PORT],..., to use the cluster that this server belongs to"
_OF_ONE_SERVER = {
    "cluster": _CLUSTER_URL,
    "sentinel": "redis+sentinel://HOST[:PORT],.../SERVICE, to use the server that this Sentinel watches",
    "MOVED": _CLUSTER_URL,
    "ASK": _CLUSTER_URL,
    "CROSSSLOT": _CLUSTER_URL,
    "CLUSTERDOWN": _CLUSTER_URL,
}
_OF_A_CLUSTER = {"ERR": "servers with cluster-enabled yes; redis://HOST[:PORT] is for one server"}
_OTHERWISE = "Redis 6 or later, or Valkey, with the URL's database; its log may say more"
# These end by themselves.
_TRANSIENT = frozenset(("LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN"))
# These too, of a cluster that replaces a primary or moves slots.
_TRANSIENT_IN_A_CLUSTER = _TRANSIENT | {"CLUSTERDOWN", "MOVED", "ASK"}

log = logging.getLogger(__name__)


async def check_redis(url: str, *, has_limits: bool) -> None:
    """Does nothing for memory://. A server that does not answer yet, or is still loading, is only logged.

    Raises InvalidRequest with the server's own code if it refuses something and tenants have limits; without limits it
    is logged, because a cache failure is only a miss.
    """
    if is_memory(url):
        return
    redis = RedisClient(url, CacheLimits(), logging.DEBUG)
    try:
        refusal = await _refusal(redis, has_limits=has_limits)
    except CacheUnavailable as error:
        log.warning("the cache server does not answer%s; starting without it", f": {error.code}" if error.code else "")
        return
    finally:
        await redis.aclose()
    if refusal is not None and has_limits:
        raise refusal
    if refusal is not None:
        log.warning("%s; until then prompts are compressed again and again", refusal)


async def _refusal(redis: RedisClient, *, has_limits: bool) -> InvalidRequest | None:
    """Raises CacheUnavailable if the server does not answer, or not yet."""
    required = _REQUIRED | (_OF_A_CLUSTER if redis.is_cluster else _OF_ONE_SERVER)
    transient = _TRANSIENT_IN_A_CLUSTER if redis.is_cluster else _TRANSIENT
    mode = "" if redis.is_cluster else await redis.mode(CHECK_S)
    if mode in required:
        return InvalidRequest("cache_url", f"a server in {mode} mode", required[mode])
    store = RedisStore(redis, CacheLimits())
    checks = {"the cache's commands": store.check, "the cache's scripts": RedisBuildLock(store).check}
    checks["redirections"] = redis.check_redirections
    if has_limits:
        checks["the scripts of tokens_per_minute"] = RedisTokenRateLimit(redis).check
        checks["the scripts of concurrency"] = RedisConcurrencyLimit(redis).check
    for what, check in checks.items():
        try:
            await redis.on_each_primary(partial(check, CHECK_S))  # each has its own users, memory and settings
        except CacheUnavailable as error:
            if not error.code or error.code in transient:
                raise
            value = f"a server that refuses {what} ({error.code})"
            return InvalidRequest("cache_url", value, required.get(error.code, _OTHERWISE))
    return None
