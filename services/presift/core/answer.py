"""The answer of a target: how its text is separated, and its pieces. The orchestrator and the target share them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from presift.core.errors import InvalidRequest
from presift.core.generation import FinishReason
from presift.core.masks import KvMask


class ToolChoice(StrEnum):
    """Whether an answer must call tools: the model decides, at least one call, or a call of one named function."""

    AUTO = "auto"
    REQUIRED = "required"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the target separates from an answer's text: the calls of `tools_json` (one definition each) and reasoning.

    `function` is the tool that must be called, with FUNCTION. `single_call` allows one call at most; it binds where a
    grammar applies. `template_kwargs_json` are the variables of the chat's template, which may turn reasoning on or
    off. Raises InvalidRequest for a forced call without tools, or of no function.
    """

    tools_json: tuple[str, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    function: str = ""
    single_call: bool = False
    separate_reasoning: bool = False
    template_kwargs_json: str = ""

    def __post_init__(self) -> None:
        if self.forces_call and not self.tools_json:
            raise InvalidRequest("tool_choice", self.tool_choice, "auto: no tools are given")
        if (self.tool_choice is ToolChoice.FUNCTION) != bool(self.function):
            limit = f"set with tool_choice {ToolChoice.FUNCTION}, and only then"
            raise InvalidRequest("tool_function", "set" if self.function else "unset", limit)

    @property
    def forces_call(self) -> bool:
        """Whether the answer must call a tool, which a grammar enforces."""
        return self.tool_choice is not ToolChoice.AUTO


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A call of a tool, with `id` and `name`, or a further piece of the JSON `arguments` of call `index`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, None for a prompt's first token.

    `top`: the most likely tokens at its place with their log probabilities, the most likely first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedText:
    """The new text of an answer, separated."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """The new part of an answer, without a stop token.

    `token_ids` include those of a stop string, because the string may end inside a token: the detokenizer cuts the
    text. `logprobs` has one item for each of them, if requested; `parsed` is their text, if a format was requested.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    parsed: ParsedText | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer. Counts are tokens; `completion_tokens` are all that were generated, with a stop token, and
    `reasoning_tokens` those before the answer, 0 if unknown. `kv_tokens`: KV tokens of the prompt during decoding.

    With a KV plan: `reused_entry` says whether the compressed entry was found. `score_ms` and `publish_ms` are the
    milliseconds to select and to copy. `coverage` is the share of the scoring queries' attention on the kept pairs,
    0..1, of the last selection, `coverage_min` the lowest of all; None if nothing was scored. `kv_mask` are the kept
    pairs, if requested and selected for this answer. `renewals` and `renewals_skipped` count how often KV was selected
    anew, and was due to be but was not; `accepted_tokens` the lookahead tokens that began the answer. `kv_tokens_peak`
    and `kv_tokens_mean` are the KV tokens of prompt and answer over the decode steps, 0 without a plan.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    kv_tokens: int
    reused_entry: bool = False
    score_ms: float = 0.0
    publish_ms: float = 0.0
    coverage: float | None = None
    kv_mask: KvMask | None = None
    reasoning_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    renewals: int = 0
    renewals_skipped: int = 0
    accepted_tokens: int = 0
    kv_tokens_peak: int = 0
    kv_tokens_mean: float = 0.0
    coverage_min: float | None = None
