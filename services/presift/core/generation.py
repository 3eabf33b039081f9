"""How an answer is generated and how it ends: the values that the orchestrator and the target share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.limits import MAX_GRAMMAR_CHARACTERS, MAX_STOP_STRINGS

MAX_BIAS = 100


class FinishReason(StrEnum):
    """Why an answer ended: STOP for EOS, a stop token or a stop string, TOOL_CALLS if it then has tool calls."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


class GrammarKind(StrEnum):
    """The language of a grammar."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF = "ebnf"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like. Only the target's engine can tell whether it is valid; `check` refuses what cannot
    be."""

    kind: GrammarKind
    text: str

    def check(self) -> None:
        """Raises InvalidRequest for a grammar without text, a long one, or a schema that is not a JSON object."""
        size = len(self.text)
        _require(size <= MAX_GRAMMAR_CHARACTERS, self.kind, f"{size} characters", f"at most {MAX_GRAMMAR_CHARACTERS}")
        _require(bool(self.text.strip()), self.kind, "empty", "a grammar")
        if self.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.STRUCTURAL_TAG):
            try:
                value = json.loads(self.text)
            except (ValueError, RecursionError):
                raise InvalidRequest(f"sampling.{self.kind}", "not JSON", "a JSON object") from None
            _require(isinstance(value, dict), self.kind, "another JSON value", "a JSON object")


@dataclass(frozen=True, slots=True)
class ContextSizes:
    """What a prompt and its answer need, and the context that they exceed; in tokens."""

    context_tokens: int
    prompt_tokens: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None means the target's default: `temperature` 0 (greedy), `top_p` 1, all of `top_k`,
    a random `seed`, no penalties. The target calls `check`.

    `logit_bias` is added to the logits of its token ids. `top_logprobs` asks for the log probability of each token and
    of that many others at its place, `prompt_logprobs` for those of the prompt's tokens too.
    """

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int | None = None
    grammar: Grammar | None = None
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    keep_special_tokens: bool = False

    @property
    def least_tokens(self) -> int:
        """The shortest answer, >= 1."""
        return self.min_new_tokens or 1

    @property
    def is_greedy(self) -> bool:
        """Whether the same prompt always gets the same answer."""
        return not self.temperature or self.top_k == 1

    def check(self) -> None:
        """Raises InvalidRequest if a value is out of its range."""
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, ">= 1")
        _require(self.top_p is None or 0.0 < self.top_p <= 1.0, "top_p", self.top_p, "> 0 and <= 1")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, ">= 1")
        _require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"{len(self.stop)} strings", f"at most {MAX_STOP_STRINGS}")
        _require(all(self.stop), "stop", "an empty string", "non-empty strings")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            _require(value is None or least <= value <= most, name, value, f"{least:g}..{most:g}")
        penalty = self.repetition_penalty
        _require(penalty is None or 0.0 < penalty <= 2.0, "repetition_penalty", penalty, "> 0 and <= 2")
        least_tokens, most_tokens = self.min_new_tokens, self.max_new_tokens
        _require((least_tokens or 0) <= most_tokens, "min_new_tokens", least_tokens, f"<= {most_tokens} tokens")
        biases = [each for each in self.logit_bias.values() if not -MAX_BIAS <= each <= MAX_BIAS]
        _require(not biases, "logit_bias", next(iter(biases), None), f"-{MAX_BIAS}..{MAX_BIAS}")
        if self.grammar is not None:
            self.grammar.check()
        if self.prompt_logprobs:
            _require(self.top_logprobs is not None, "prompt_logprobs", True, "unset without top_logprobs")


# Both ends are allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "top_logprobs": (0, 20),
}


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of a target's engine: running and waiting requests, KV slots free or held by running requests.

    Slots that only the radix cache holds are free.
    """

    running: int
    waiting: int
    free_kv_tokens: int
    held_kv_tokens: int = 0


def decode_steps(completion_tokens: int, accepted_tokens: int) -> int:
    """The steps between an answer's first and last token. Accepted lookahead tokens come at once, before the first
    step; without any, the first token does."""
    return completion_tokens - max(1, accepted_tokens)


def _require(holds: bool, name: str, value: Any, limit: str) -> None:
    if not holds:
        raise InvalidRequest(f"sampling.{name}", value, limit)
