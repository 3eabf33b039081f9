"""Compressed prompts in a Redis or Valkey server, shared by all orchestrators that use it."""

from __future__ import annotations

import secrets
from dataclasses import replace

from presift.cache.codec import NAME, VERSION, CorruptValue, OtherVersion, ValueTooLarge, decode, encode
from presift.cache.redis_client import WRONG_TYPE, CacheUnavailable, RedisClient
from presift.cache.store import CacheLimits, CacheObserver, Operation, Outcome, ignore
from presift.core.plan import CompressedPrompt


class RedisStore:
    """A Store over `client`. The server expires values after `limits.ttl_s` (setting: `cache_ttl_s`) and limits its own
    memory. Values are authenticated with `salt`, the deployment's."""

    def __init__(
        self, client: RedisClient, limits: CacheLimits, observe: CacheObserver = ignore, salt: str = ""
    ) -> None:
        self.client = client
        self.limits = limits
        self._observe = observe
        self._salt = salt

    @property
    def is_available(self) -> bool:
        return self.client.is_available

    async def get(self, digest: str) -> CompressedPrompt | None:
        """As Store.get. Returns within `limits.timeout_s`, or twice that if it drops a corrupt value."""
        value: CompressedPrompt | None = None
        try:
            data = await self._read(digest)
            value = decode(digest, data, self._salt) if data else None
            outcome = Outcome.HIT if value else Outcome.MISS
        except CacheUnavailable as trouble:
            outcome = trouble.outcome
        except CorruptValue:
            outcome = Outcome.CORRUPT
            await self._drop(digest)
        except OtherVersion:  # left alone: orchestrators of that version use it
            outcome = Outcome.OTHER_VERSION
        self._observe(Operation.GET, outcome)
        return value

    async def put(self, digest: str, value: CompressedPrompt) -> None:
        self._observe(Operation.PUT, await self._write(digest, value))

    def patient(self) -> RedisStore:
        """The same store, not observed, with the timeout of a claim."""
        limits = replace(self.limits, timeout_s=self.limits.claim_timeout_s)
        return RedisStore(self.client, limits, salt=self._salt)

    async def check(self, timeout_s: float) -> None:
        """Run each command of this store on a key that nothing uses. Raises CacheUnavailable."""
        key = redis_key(secrets.token_hex(32))
        for command in (("SET", key, b"", "PX", 1000), ("GETRANGE", key, 0, 0), ("DEL", key)):
            await self.client.execute(*command, timeout_s=timeout_s)

    async def aclose(self) -> None:
        await self.client.aclose()

    async def _read(self, digest: str) -> bytes:
        # Not GET: this key may hold a huge value, which must not fill the memory.
        command = ("GETRANGE", redis_key(digest), 0, self.limits.max_value_bytes)
        try:
            reply = await self.client.execute(*command, timeout_s=self.limits.timeout_s)
        except CacheUnavailable as trouble:
            if trouble.code == WRONG_TYPE:
                raise CorruptValue from None
            raise
        if not isinstance(reply, bytes):
            raise CorruptValue
        if len(reply) > self.limits.max_value_bytes and reply.startswith(NAME):
            raise OtherVersion  # cut, and this version writes no such value
        return reply

    async def _write(self, digest: str, value: CompressedPrompt) -> Outcome:
        ttl_ms = max(1, round(self.limits.ttl_s * 1000))
        try:
            data = encode(digest, value, self.limits.max_value_bytes, self._salt)
            await self.client.execute("SET", redis_key(digest), data, "PX", ttl_ms, timeout_s=self.limits.put_timeout_s)
        except ValueTooLarge:
            return Outcome.TOO_LARGE
        except CacheUnavailable as trouble:
            return trouble.outcome
        return Outcome.STORED

    async def _drop(self, digest: str) -> None:
        try:
            await self.client.execute("DEL", redis_key(digest), timeout_s=self.limits.timeout_s)
        except CacheUnavailable:
            return  # the next put overwrites it, and until then it is a miss


def redis_key(digest: str) -> str:
    """The key of the value of `digest`. It has the codec's version, so that orchestrators with another format
    neither read nor overwrite this value."""
    return f"presift:v{VERSION}:{digest}"
