"""The port: where compressed prompts are kept, what may be kept, and how outcomes reach whoever counts them.

Knows no transport and no telemetry. The rule of this whole package: cache trouble is a miss, never an error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Protocol

from presift.core.errors import InvalidRequest
from presift.core.plan import CompressedPrompt

# How many times longer a claim is waited for than a look-up.
CLAIM_PATIENCE = 5.0


class Operation(StrEnum):
    """What was asked of the cache."""

    GET = "get"
    PUT = "put"
    CLAIM = "claim"  # of a lease: see presift.cache.build_lock


class Outcome(StrEnum):
    """How one operation ended; each operation reports exactly one."""

    HIT = "hit"
    MISS = "miss"
    STORED = "stored"
    TOO_LARGE = "too_large"  # refused: over `max_value_bytes`
    CORRUPT = "corrupt"  # what lay under the key does not verify; it has been dropped
    TIMEOUT = "timeout"
    ERROR = "error"
    SKIPPED = "skipped"  # not tried: the store rests after repeated failures


class CacheObserver(Protocol):
    """Told every outcome, on the event loop: it must be quick and must not raise."""

    def __call__(self, operation: Operation, outcome: Outcome) -> None: ...


def ignore(operation: Operation, outcome: Outcome) -> None:
    """The observer that counts nothing."""


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much, how long and how patiently. Raises InvalidRequest unless all are positive.

    `memory_bytes` bounds the in-memory store alone; a server's memory is bounded by the server. `timeout_s` covers one
    read command with everything before it: the wait for a pooled connection, connecting, TLS and authentication.
    `put_timeout_s` covers the same for a write, which nobody waits for. After `rest_after_failures` failures in a row
    the server is left alone for `rest_s`, then tried with a single command.
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
        """More patient than a look-up: a claim that is given up may cost a second draft pass."""
        return self.timeout_s * CLAIM_PATIENCE


class Store(Protocol):
    """Compressed prompts by digest (64 hex digits, see presift.core.digest).

    No method raises for cache trouble; what happened is told to the observer. Only a defect of ours raises.
    """

    async def get(self, digest: str) -> CompressedPrompt | None:
        """The value, verified to belong to `digest`; None on a miss, which is what any trouble is."""
        ...

    async def put(self, digest: str, value: CompressedPrompt) -> None:
        """Keep `value` if it can be kept. Returns when it is stored or given up: run it beside the answer."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and memory. A closed store only misses, or is not used any more."""
        ...
