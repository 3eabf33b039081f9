"""What `explain` gives back, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client.forecasts import RouteForecast, route_of
from presift_client.results import Decision, decision_of


@dataclass(frozen=True, slots=True)
class KvMask:
    """Which KV pairs are kept. 1 in `layers` or `kv_heads` means "the same for all".

    `bits` is a bitset [layers, kv_heads, prompt_tokens], each row padded to a byte, lowest bit first: with numpy,
    `np.unpackbits(np.frombuffer(bits, np.uint8).reshape(layers, kv_heads, -1), axis=2, count=prompt_tokens,
    bitorder="little")`.
    """

    layers: int
    kv_heads: int
    prompt_tokens: int
    bits: bytes

    def kept(self, layer: int, kv_head: int) -> list[int]:
        """The prompt tokens whose KV pair that head keeps, ascending."""
        if not (0 <= layer < self.layers and 0 <= kv_head < self.kv_heads):
            raise IndexError(f"layer {layer}, head {kv_head} of {self.layers} layers with {self.kv_heads} heads")
        row_bytes = (self.prompt_tokens + 7) // 8
        row = self.bits[(layer * self.kv_heads + kv_head) * row_bytes :][:row_bytes]
        return [token for token in range(self.prompt_tokens) if row[token // 8] >> token % 8 & 1]


@dataclass(frozen=True, slots=True)
class ExplainedSpan:
    """A run of prompt tokens with one fate: `start <= token < end`.

    `characters` is where it lies in the explanation's text, None for prompts of token ids. `importance` is its share of
    the whole prompt's, 0..1; `kept_share` the share of each token's KV pairs that the target keeps, None where it was
    not asked or drops none.
    """

    start: int
    end: int
    characters: tuple[int, int] | None
    kept: bool
    protected: bool
    importance: float
    kept_share: float | None

    @property
    def tokens(self) -> int:
        """How many tokens it is."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be applied, and what would become of every prompt token; the spans cover the prompt, in order.

    `text` is the prompt as it is tokenised, chat template applied; empty for prompts of token ids. `kv_mask` and
    `target_coverage` (0..1) are the target's, None where it was not asked or drops no KV. `routes` is what AUTO chose
    among, in its order.
    """

    decision: Decision
    spans: tuple[ExplainedSpan, ...]
    text: str
    kv_mask: KvMask | None
    target_coverage: float | None
    routes: tuple[RouteForecast, ...] = ()


def explanation_of(response: orchestrator_pb2.ExplainResponse) -> Explanation:
    """What Explain said."""
    return Explanation(
        decision=decision_of(response.decision),
        spans=tuple(_span(span) for span in response.spans),
        text=response.text,
        kv_mask=_kv_mask(response.kv_mask) if response.HasField("kv_mask") else None,
        target_coverage=response.target_coverage if response.HasField("target_coverage") else None,
        routes=tuple(route_of(route) for route in response.routes),
    )


def _span(span: orchestrator_pb2.ExplainedSpan) -> ExplainedSpan:
    return ExplainedSpan(
        start=span.tokens.start,
        end=span.tokens.end,
        characters=(span.characters.start, span.characters.end) if span.HasField("characters") else None,
        kept=span.kept,
        protected=span.protected,
        importance=span.importance,
        kept_share=span.kept_share if span.HasField("kept_share") else None,
    )


def _kv_mask(mask: plan_pb2.KvMask) -> KvMask:
    return KvMask(mask.layers, mask.kv_heads, mask.prompt_tokens, mask.kept)
