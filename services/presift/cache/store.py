"""The port of the stores: their interface, their limits, and the outcomes that they report.

Knows no transport and no telemetry. The rule of this package: a cache failure is a miss, never an error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Protocol

from presift.core.errors import InvalidRequest
from presift.core.plan import CompressedPrompt

# The timeout of a claim, as a multiple of that of a look-up.
CLAIM_TIMEOUT_FACTOR = 5.0


class Operation(StrEnum):
    """A cache operation."""

    GET = "get"
    PUT = "put"
    CLAIM = "claim"  # a lease: see presift.cache.build_lock


class Outcome(StrEnum):
    """How one operation ended; each operation reports exactly one."""

    HIT = "hit"
    MISS = "miss"
    STORED = "stored"
    TOO_LARGE = "too_large"  # larger than `max_value_bytes`
    CORRUPT = "corrupt"  # the stored bytes do not verify and were dropped
    OTHER_VERSION = "other_version"  # presift's, but this version cannot read it; it was left alone
    TIMEOUT = "timeout"
    ERROR = "error"
    SKIPPED = "skipped"  # not tried: the circuit breaker is open


class CacheObserver(Protocol):
    """Called with every outcome, on the event loop: it must be fast and must not raise."""

    def __call__(self, operation: Operation, outcome: Outcome) -> None: ...


def ignore(operation: Operation, outcome: Outcome) -> None:
    """The observer that counts nothing."""


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Sizes and timeouts. Raises InvalidRequest unless all are positive.

    `memory_bytes` limits the in-memory store only; a server limits its own memory. `timeout_s` covers one read command
    with everything before it: the wait for a pooled connection, connecting, TLS and authentication. `put_timeout_s`
    covers the same for a write; the request that scored the prompt waits for it. After `rest_after_failures` failures
    in a row the circuit breaker is open for `rest_s` seconds, then lets a single command through.
    """

    ttl_s: float = 86_400.0
    max_value_bytes: int = 1 << 20
    memory_bytes: int = 64 << 20
    timeout_s: float = 0.05
    put_timeout_s: float = 0.25
    max_connections: int = 32
    rest_after_failures: int = 5
    rest_s: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InvalidRequest(f"cache.{field.name}", getattr(self, field.name), "> 0")

    @property
    def claim_timeout_s(self) -> float:
        """Longer than that of a look-up: a claim that times out may cost a second draft pass."""
        return self.timeout_s * CLAIM_TIMEOUT_FACTOR


class Store(Protocol):
    """Compressed prompts by digest (64 hex digits, see presift.core.digest).

    No method raises for a cache failure; the observer gets the outcome. Only a bug in presift raises.
    """

    @property
    def is_available(self) -> bool:
        """Whether the cache carried out its last command."""
        ...

    async def get(self, digest: str) -> CompressedPrompt | None:
        """The value, verified to belong to `digest`; None for a miss or any failure."""
        ...

    async def put(self, digest: str, value: CompressedPrompt) -> None:
        """Store `value` if possible. Returns when that succeeded or failed, after at most `put_timeout_s`."""
        ...

    async def aclose(self) -> None:
        """Release connections and memory. Do not use a closed store."""
        ...
