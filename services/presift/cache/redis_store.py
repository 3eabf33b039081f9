"""Compressed prompts in a Redis or Valkey server, shared by all orchestrators that use it."""

from __future__ import annotations

from presift.cache.codec import VERSION, CorruptValue, ValueTooLarge, decode, encode
from presift.cache.redis_client import CacheUnavailable, RedisClient
from presift.cache.store import CacheLimits, CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt


class RedisStore:
    """A Store over `link`. The server expires values after `limits.ttl_s` and bounds its own memory."""

    def __init__(self, link: RedisClient, limits: CacheLimits, observe: CacheObserver = ignore) -> None:
        self.link = link
        self._limits = limits
        self._observe = observe

    async def get(self, digest: str) -> CompressedPrompt | None:
        """As Store.get. Answers within `limits.timeout_s`, or twice that if it must drop a corrupt value."""
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
        await self.link.aclose()

    async def _read(self, digest: str) -> bytes:
        # Not GET: a huge value under our key must not be read into memory. One byte over the bound cannot verify.
        command = ("GETRANGE", redis_key(digest), 0, self._limits.max_value_bytes)
        try:
            reply = await self.link.ask(*command, timeout_s=self._limits.timeout_s)
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
            await self.link.ask("SET", redis_key(digest), data, "PX", ttl_ms, timeout_s=self._limits.put_timeout_s)
        except ValueTooLarge:
            return Outcome.TOO_LARGE
        except CacheUnavailable as trouble:
            return trouble.outcome
        return Outcome.STORED

    async def _drop(self, digest: str) -> None:
        try:
            await self.link.ask("DEL", redis_key(digest), timeout_s=self._limits.timeout_s)
        except CacheUnavailable:
            return  # the next put overwrites it, and until then it is a miss


def redis_key(digest: str) -> str:
    """Where the value of `digest` lies. The codec's version is in it, so that a rolling upgrade does not thrash."""
    return f"presift:v{VERSION}:{digest}"
