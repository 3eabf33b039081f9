"""Conversions of what asks for an answer (`Sampling`, `AnswerFormat`) and of an answer's pieces and end.

The orchestrator's API and the target's have these messages in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from presift.core.answer import AnswerDelta, AnswerFormat, Finished, ParsedText, TokenLogprob, ToolCallDelta, ToolChoice
from presift.core.generation import FinishReason, Grammar, GrammarKind, Sampling
from presift.rpc import codec
from presift.rpc.wire_enum import WireEnum
from presift.v1 import target_pb2

# Converting a token's log probabilities takes no longer than reading so many bytes, see `large_input`.
LOGPROB_BYTES = 256
# Fields of Sampling that are optional on the wire, and those that always have a value.
_OPTIONAL = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "seed", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "min_new_tokens", "top_logprobs"),
)
_FLAGS = ("ignore_eos", "prompt_logprobs", "keep_special_tokens")
# Fields that Finished and both messages about it have.
_FINISHED = (
    *("kv_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "reused_entry", "score_ms", "publish_ms"),
    *("coverage", "coverage_min", "renewals", "renewals_skipped", "accepted_tokens", "kv_tokens_peak"),
    "kv_tokens_mean",
)
_TOOL_CHOICES = WireEnum(ToolChoice, target_pb2.ToolChoice)
_FINISH_REASONS = WireEnum(FinishReason, target_pb2.FinishReason)


def finish_to_wire(reason: FinishReason) -> target_pb2.FinishReason:
    wire: target_pb2.FinishReason = _FINISH_REASONS.to_wire(reason)
    return wire


def finish_from_wire(reason: int) -> FinishReason:
    """A reason that we do not know is STOP: a newer target may have more."""
    return _FINISH_REASONS.known(reason) or FinishReason.STOP


def sampling_from_wire(sampling: target_pb2.Sampling) -> Sampling:
    """Fields that are unset have the defaults of Sampling."""
    kind = sampling.WhichOneof("grammar")
    grammar = None if kind is None else Grammar(GrammarKind(kind), getattr(sampling, kind))
    return Sampling(
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        logit_bias=dict(sampling.logit_bias),
        grammar=grammar,
        **codec.set_fields(sampling, *_OPTIONAL),
        **{name: getattr(sampling, name) for name in _FLAGS},
    )


def sampling_to_wire(sampling: Sampling) -> target_pb2.Sampling:
    """Fields that the caller left out stay out."""
    grammar: dict[str, Any] = {} if sampling.grammar is None else {sampling.grammar.kind.value: sampling.grammar.text}
    return target_pb2.Sampling(
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        logit_bias=sampling.logit_bias,
        **grammar,
        **{name: getattr(sampling, name) for name in (*_OPTIONAL, *_FLAGS)},
    )


def tool_choice_from_wire(choice: int) -> ToolChoice:
    """Raises InvalidRequest for an unknown number."""
    return _TOOL_CHOICES.from_wire(choice, "tool_choice") or ToolChoice.AUTO


def format_from_wire(wanted: target_pb2.AnswerFormat) -> AnswerFormat:
    """Raises InvalidRequest."""
    return AnswerFormat(
        tuple(wanted.tools_json),
        tool_choice_from_wire(wanted.tool_choice),
        wanted.function,
        wanted.single_call,
        wanted.separate_reasoning,
        wanted.template_kwargs_json,
    )


def format_to_wire(wanted: AnswerFormat) -> target_pb2.AnswerFormat:
    return target_pb2.AnswerFormat(
        tools_json=wanted.tools_json,
        tool_choice=_TOOL_CHOICES.to_wire(wanted.tool_choice),
        function=wanted.function,
        single_call=wanted.single_call,
        separate_reasoning=wanted.separate_reasoning,
        template_kwargs_json=wanted.template_kwargs_json,
    )


def delta_to_wire(delta: AnswerDelta) -> target_pb2.TokenDelta:
    parsed = delta.parsed
    return target_pb2.TokenDelta(
        token_ids=delta.token_ids,
        logprobs=logprobs_to_wire(delta.logprobs),
        parsed=None
        if parsed is None
        else target_pb2.ParsedText(
            content=parsed.content, reasoning=parsed.reasoning, tool_calls=tool_calls_to_wire(parsed.tool_calls)
        ),
    )


def delta_from_wire(delta: target_pb2.TokenDelta) -> AnswerDelta:
    parsed = delta.parsed
    calls = tuple(ToolCallDelta(each.index, each.id, each.name, each.arguments) for each in parsed.tool_calls)
    text = ParsedText(parsed.content, parsed.reasoning, calls) if delta.HasField("parsed") else None
    return AnswerDelta(tuple(delta.token_ids), logprobs_from_wire(delta.logprobs), text)


def tool_calls_to_wire(calls: Iterable[ToolCallDelta]) -> list[target_pb2.ToolCallDelta]:
    return [
        target_pb2.ToolCallDelta(index=each.index, id=each.id, name=each.name, arguments=each.arguments)
        for each in calls
    ]


def finished_to_wire(finished: Finished) -> dict[str, Any]:
    """The fields that both services' messages about a finished answer have, by name: without `prompt_tokens`, which the
    orchestrator counts before anything is dropped."""
    same = {name: getattr(finished, name) for name in _FINISHED}
    return same | {
        "finish_reason": finish_to_wire(finished.finish_reason),
        "prompt_logprobs": logprobs_to_wire(finished.prompt_logprobs),
    }


def logprobs_to_wire(logprobs: Iterable[TokenLogprob]) -> list[target_pb2.TokenLogprob]:
    return [
        target_pb2.TokenLogprob(
            token_id=each.token_id,
            logprob=each.logprob,
            top=[target_pb2.TopLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in each.top],
        )
        for each in logprobs
    ]


def logprobs_from_wire(logprobs: Iterable[target_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            each.token_id,
            each.logprob if each.HasField("logprob") else None,
            tuple((top.token_id, top.logprob) for top in each.top),
        )
        for each in logprobs
    )
