"""Values that services exchange: models, compressed prompts, routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from presift.core.errors import InvalidRequest
from presift.core.masks import TokenMask


class Route(StrEnum):
    """How one request is served."""

    FULL = "full"
    SPEC_PC = "spec_pc"
    SPEC_KV = "spec_kv"
    SPEC_KV_PC = "spec_kv_pc"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model of a service. `revision` changes whenever the weights may have changed; limits are in tokens.

    `layers` are loaded. `all_layers` is the number in the model's files if a draft loaded only the first ones, else 0.
    `head_profile` is the digest of a draft's head profile, empty without one.
    """

    id: str
    revision: str
    tokenizer_fingerprint: str
    context_tokens: int
    layers: int
    kv_heads: int
    vocabulary_size: int
    head_profile: str = ""
    all_layers: int = 0

    @property
    def short_revision(self) -> str:
        """For people: each part (the weights; a draft's data type, layers and heads) cut to 12 characters."""
        return "-".join(part[:12] for part in self.revision.split("-"))

    @property
    def can_look_ahead(self) -> bool:
        """Whether the model can generate tokens: a draft without its last layers cannot."""
        return self.all_layers == 0

    def shares_vocabulary(self, other: ModelInfo) -> bool:
        """Whether token ids mean the same to both. Two models without tokenizer compare by vocabulary size."""
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
    """A value of the cache: token mask, lookahead, coverage and provenance; never text.

    `coverage` is 0..1, or None if nothing was scored. `kv_capacity` is how many KV pairs per layer and head the draft
    would keep of the mask's tokens; None if it was not requested or all fit. `kv_coverage` is the share of their
    attention mass that those pairs cover; None if unknown. `made_in` is the trace span that made the value, None if it
    was not traced; it is ignored by ==. Raises InvalidRequest.
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
