"""The result of `explain`, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client.forecasts import RouteForecast, route_of
from presift_client.results import Decision, decision_of
from presift_client.wire import plain


@dataclass(frozen=True, slots=True)
class KvMask:
    """Which KV pairs are kept. `layers` or `kv_heads` is 1 if all layers or heads share one mask.

    `bits` is a bitset [layers, kv_heads, prompt_tokens], each row padded to a whole byte, lowest bit first. With numpy:
    `np.unpackbits(np.frombuffer(bits, np.uint8).reshape(layers, kv_heads, -1), axis=2, count=prompt_tokens,
    bitorder="little")`.
    """

    layers: int
    kv_heads: int
    prompt_tokens: int
    bits: bytes

    def kept(self, layer: int, kv_head: int) -> list[int]:
        """The prompt tokens whose KV pair this head keeps, ascending. Raises IndexError for a head not in the mask."""
        if not (0 <= layer < self.layers and 0 <= kv_head < self.kv_heads):
            size = f"{self.layers} layers and {self.kv_heads} KV heads"
            raise IndexError(f"layer {layer}, KV head {kv_head} is out of range: the mask has {size}")
        row_bytes = (self.prompt_tokens + 7) // 8
        row = self.bits[(layer * self.kv_heads + kv_head) * row_bytes :][:row_bytes]
        return [token for token in range(self.prompt_tokens) if row[token // 8] >> token % 8 & 1]


@dataclass(frozen=True, slots=True)
class ExplainedSpan:
    """A run of prompt tokens, `start <= token < end`, that are kept, dropped and protected alike.

    `characters` is the range in the explanation's text; None for prompts of token ids. `importance` is the run's share
    of the prompt's total importance, 0..1. `kept_share` is the share of each token's KV pairs that the target keeps,
    0..1; None if the KV mask was not requested or no KV is dropped.
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
        """The number of tokens in the run."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be applied to a prompt and what would be kept of it; the spans cover the prompt, in order.

    `text` is the prompt that is tokenized, chat template applied; empty for prompts of token ids. `kv_mask` and
    `target_coverage` (0..1) come from the target; None if they were not requested or no KV is dropped. `routes` are the
    routes that AUTO chose from, in its order.
    """

    decision: Decision
    spans: tuple[ExplainedSpan, ...]
    text: str
    kv_mask: KvMask | None
    target_coverage: float | None
    routes: tuple[RouteForecast, ...] = ()


def explanation_of(response: orchestrator_pb2.ExplainResponse) -> Explanation:
    """The response of Explain."""
    return plain(
        Explanation,
        response,
        decision=decision_of(response.decision),
        spans=tuple(_span(span) for span in response.spans),
        kv_mask=_kv_mask(response.kv_mask) if response.HasField("kv_mask") else None,
        routes=tuple(route_of(route) for route in response.routes),
    )


def _span(span: orchestrator_pb2.ExplainedSpan) -> ExplainedSpan:
    characters = (span.characters.start, span.characters.end) if span.HasField("characters") else None
    return plain(ExplainedSpan, span, start=span.tokens.start, end=span.tokens.end, characters=characters)


def _kv_mask(mask: plan_pb2.KvMask) -> KvMask:
    return plain(KvMask, mask, bits=mask.kept)
