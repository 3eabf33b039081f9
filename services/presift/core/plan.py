"""Values that travel between services: models, compressed prompts, routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from presift.core.errors import InvalidRequest
from presift.core.masks import TokenMask


class Route(StrEnum):
    """What one request gets."""

    FULL = "full"
    SPEC_PC = "spec_pc"
    SPEC_KV = "spec_kv"
    SPEC_KV_PC = "spec_kv_pc"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that a service runs. `revision` changes whenever the weights may have; limits are in tokens."""

    id: str
    revision: str
    tokenizer_fingerprint: str
    context_tokens: int
    layers: int
    kv_heads: int
    vocabulary_size: int

    def shares_vocabulary(self, other: ModelInfo) -> bool:
        """Whether both read the same token ids. Two without tokenizer compare by size."""
        is_same = self.tokenizer_fingerprint == other.tokenizer_fingerprint
        return is_same and bool(self.tokenizer_fingerprint or self.vocabulary_size == other.vocabulary_size)


@dataclass(frozen=True, slots=True)
class SpanRef:
    """A span of a trace by its ids: 32 and 16 hex digits, neither all zeros. Raises InvalidRequest."""

    trace_id: str
    span_id: str

    def __post_init__(self) -> None:
        for name, digits in (("trace_id", 32), ("span_id", 16)):
            value = getattr(self, name)
            if len(value) != digits or not set(value) <= set("0123456789abcdef") or not value.strip("0"):
                raise InvalidRequest(name, repr(value[:64]), f"{digits} lower-case hex digits, not all zeros")


@dataclass(frozen=True, slots=True)
class CompressedPrompt:
    """What the cache holds: the token mask, the lookahead, coverage and provenance; never text.

    `coverage` is 0..1, or None where nothing was scored. `kv_capacity` is how many KV pairs per layer and head the
    draft would keep of the mask's tokens, None where it was not asked or all fit; `kv_coverage` is the share of their
    attention mass that those cover, None where the draft does not say. `made_in` is the span that it was made in, None
    where nobody traced it; two that differ in this alone are equal. Raises InvalidRequest.
    """

    mask: TokenMask
    lookahead_token_ids: tuple[int, ...]
    coverage: float | None
    draft: ModelInfo
    kv_capacity: int | None = None
    kv_coverage: float | None = None
    made_in: SpanRef | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("coverage", "kv_coverage"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InvalidRequest(name, value, "0..1")
        if self.kv_capacity is not None and self.kv_capacity < 1:
            raise InvalidRequest("kv_capacity", self.kv_capacity, ">= 1")
