"""Checks what a request wants of its answer: a grammar, tool calls, reasoning, log probabilities."""

from __future__ import annotations

from presift.core.errors import InvalidRequest
from presift.target.engine import EngineInfo, GenerateRequest


def check_answer(request: GenerateRequest, info: EngineInfo) -> None:
    """Raises InvalidRequest for what the engine does not have."""
    sampling = request.sampling
    if sampling.grammar is not None and not info.grammars:
        raise InvalidRequest(f"sampling.{sampling.grammar.kind}", "set", "unset: this target has no grammars")
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
