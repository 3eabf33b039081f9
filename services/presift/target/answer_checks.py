"""Checks what a request wants of its answer: a grammar, tool calls, reasoning, log probabilities."""

from __future__ import annotations

import json

from presift.core.errors import InvalidRequest
from presift.core.generation import Grammar, GrammarKind
from presift.target.engine import EngineInfo, GenerateRequest

_JSON_KINDS = (GrammarKind.JSON_SCHEMA, GrammarKind.STRUCTURAL_TAG)


def check_answer(request: GenerateRequest, info: EngineInfo) -> None:
    """Raises InvalidRequest for what the engine does not have, and for a grammar that is certainly malformed."""
    sampling = request.sampling
    if sampling.grammar is not None:
        _check_grammar(sampling.grammar, info)
    if sampling.prompt_logprobs and request.kv_plan is not None:
        raise InvalidRequest("sampling.prompt_logprobs", True, "unset in a request that drops KV")
    wanted = request.format
    if wanted is None:
        return
    if wanted.forces_call and not info.grammars:
        raise InvalidRequest("tool_choice", wanted.tool_choice, "auto: this target has no grammars")
    if wanted.tools_json and not (info.tool_call_parser or wanted.forces_call):
        raise InvalidRequest("format.tools_json", "set", "empty: this target has no parser of tool calls")
    if wanted.separate_reasoning and not info.reasoning_parser:
        raise InvalidRequest("format.separate_reasoning", True, "unset: this target has no parser of reasoning")


def _check_grammar(grammar: Grammar, info: EngineInfo) -> None:
    field = f"sampling.{grammar.kind}"
    if not info.grammars:
        raise InvalidRequest(field, "set", "unset: this target has no grammars")
    # SGLang takes an empty text for none.
    if not grammar.text.strip():
        raise InvalidRequest(field, "empty", "a grammar")
    if grammar.kind not in _JSON_KINDS:
        return
    try:
        value = json.loads(grammar.text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, "not JSON", "JSON text") from error
    if not isinstance(value, dict):
        raise InvalidRequest(field, type(value).__name__, "a JSON object")
