"""Compressed prompts in a Redis or Valkey server, shared by all orchestrators that use it."""

from __future__ import annotations

from presift.cache.codec import VERSION, CorruptValue, ValueTooLarge, decode, encode
from presift.cache.redis_client import CacheUnavailable, RedisClient
from presift.cache.store import CacheLimits, CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt


class RedisStore:
    """A Store over `client`. The server expires values after `limits.ttl_s` (setting: `cache_ttl_s`) and limits its own
    memory."""

    def __init__(self, client: RedisClient, limits: CacheLimits, observe: CacheObserver = ignore) -> None:
        self.client = client
        self._limits = limits
        self._observe = observe

    @property
    def is_available(self) -> bool:
        return self.client.is_available

    async def get(self, digest: str) -> CompressedPrompt | None:
        """As Store.get. Returns within `limits.timeout_s`, or twice that if it drops a corrupt value."""
        value: CompressedPrompt | None = None
        try:
            data = await self._read(digest)
            value = decode(digest, data) if data else None
            outcome = Outcome.HIT if value else Outcome.MISS
        except CacheUnavailable as trouble:
            outcome = trouble.outcome
        except CorruptValue:
            outcome = Outcome.CORRUPT
            await self._drop(digest)
        self._observe(Operation.GET, outcome)
        return value

    async def put(self, digest: str, value: CompressedPrompt) -> None:
        self._observe(Operation.PUT, await self._write(digest, value))

    async def aclose(self) -> None:
        await self.client.aclose()

    async def _read(self, digest: str) -> bytes:
        # Not GET: this key may hold a huge value, which must not fill the memory. A value cut at the limit is corrupt.
        command = ("GETRANGE", redis_key(digest), 0, self._limits.max_value_bytes)
        try:
            reply = await self.client.execute(*command, timeout_s=self._limits.timeout_s)
        except CacheUnavailable as trouble:
            if trouble.is_wrong_type:
                raise CorruptValue from None
            raise
        if not isinstance(reply, bytes):
            raise CorruptValue
        return reply

    async def _write(self, digest: str, value: CompressedPrompt) -> Outcome:
        ttl_ms = max(1, round(self._limits.ttl_s * 1000))
        try:
            data = encode(digest, value, self._limits.max_value_bytes)
            await self.client.execute(
                "SET", redis_key(digest), data, "PX", ttl_ms, timeout_s=self._limits.put_timeout_s
            )
        except ValueTooLarge:
            return Outcome.TOO_LARGE
        except CacheUnavailable as trouble:
            return trouble.outcome
        return Outcome.STORED

    async def _drop(self, digest: str) -> None:
        try:
            await self.client.execute("DEL", redis_key(digest), timeout_s=self._limits.timeout_s)
        except CacheUnavailable:
            return  # the next put overwrites it, and until then it is a miss


def redis_key(digest: str) -> str:
    """The key of the value of `digest`. It has the codec's version, so that during a rolling upgrade old and new
    orchestrators do not drop each other's values."""
    return f"presift:v{VERSION}:{digest}"
