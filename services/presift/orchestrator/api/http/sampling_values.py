"""The domain's Sampling from a body: OpenAI's parameters, SGLang's and vLLM's, and those under `presift.sampling`."""

from __future__ import annotations

from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.grammars import grammar_of, grammar_parameter
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.schema import Body, CompletionBody

# OpenAI's documented default.
_TEMPERATURE = 1.0
# Parameter -> field of `presift.sampling`: the same value under two names.
_TWICE = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
}


def sampling_of(body: Body, max_new_tokens: int) -> Sampling:
    """`max_new_tokens` is used if the body sets no length. Raises InvalidRequest."""
    asked = max_new_tokens_of(body)
    twice = {field: _one_of(body, parameter, field) for parameter, field in _TWICE.items()}
    top_k, keep = twice["top_k"], body.presift.sampling.keep_special_tokens
    top_logprobs = _top_logprobs(body)
    return Sampling(
        # An engine generates at least one token. For 0, which needs `echo`, it is not sent.
        max_new_tokens=max_new_tokens if asked is None else max(1, asked),
        temperature=_TEMPERATURE if body.temperature is None else body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k in (-1, 0) and top_k == body.top_k else top_k,
        seed=None if body.seed == -1 else body.seed,
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(twice["stop_token_ids"] or ()),
        ignore_eos=bool(twice["ignore_eos"]),
        min_p=twice["min_p"],
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=twice["repetition_penalty"],
        logit_bias=body.logit_bias or {},
        min_new_tokens=twice["min_new_tokens"],
        grammar=grammar_of(body),
        top_logprobs=top_logprobs,
        prompt_logprobs=isinstance(body, CompletionBody) and body.echo and top_logprobs is not None,
        keep_special_tokens=not body.skip_special_tokens if keep is None else keep,
    )


def max_new_tokens_of(body: Body) -> int | None:
    """How many tokens the body asks for; None if it sets no length. Raises InvalidRequest for two different ones."""
    if isinstance(body, CompletionBody):
        if body.max_tokens == 0 and not body.echo:
            raise InvalidRequest("max_tokens", 0, ">= 1, or 0 with echo")
        return body.max_tokens
    newer = body.max_completion_tokens
    if newer is not None and body.max_tokens not in (None, newer):
        raise InvalidRequest("max_tokens", body.max_tokens, f"left out, or max_completion_tokens ({newer})")
    return body.max_tokens if newer is None else newer


def parameter_names(body: Body) -> ParameterNames:
    """How this body spells the fields of its request."""
    sampling = {field: _spelling(body, parameter, field) for parameter, field in _TWICE.items()}
    grammar = grammar_parameter(body)
    if grammar is not None:
        sampling |= dict.fromkeys(("grammar", "json_schema", "regex", "ebnf", "structural_tag"), grammar)
    if isinstance(body, CompletionBody):
        return ParameterNames(sampling=sampling | {"top_logprobs": "logprobs", "prompt_logprobs": "echo"})
    is_newer = body.max_completion_tokens is not None
    return ParameterNames("messages", "max_completion_tokens" if is_newer else "max_tokens", sampling)


def _one_of(body: Body, parameter: str, field: str) -> Any:
    """The value of a parameter that may stand in the body or under `presift.sampling`. Raises InvalidRequest if they
    differ."""
    above, below = getattr(body, parameter), getattr(body.presift.sampling, field)
    if below is None or parameter not in body.model_fields_set:
        return above if below is None else below
    if above != below:
        limit = f"left out, or as presift.sampling.{field} ({brief(below)})"
        raise InvalidRequest(parameter, brief(above), limit)
    return below


def _spelling(body: Body, parameter: str, field: str) -> str:
    return f"presift.sampling.{field}" if getattr(body.presift.sampling, field) is not None else parameter


def _top_logprobs(body: Body) -> int | None:
    if isinstance(body, CompletionBody):
        if body.logprobs is True:
            raise InvalidRequest("logprobs", True, "a number of tokens, or left out")
        return body.logprobs
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs", body.top_logprobs, "left out, unless logprobs is true")
    return None
