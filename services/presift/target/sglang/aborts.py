"""Why SGLang aborted a request, as an error of presift."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from presift.core.errors import (
    BudgetExceeded,
    InternalError,
    InvalidRequest,
    PresiftError,
    PromptTooLong,
    RouteUnsupported,
    TargetUnavailable,
)
from presift.target.engine import GenerateRequest
from presift.target.sglang_plugin import custom_params

_MAX_REASON_CHARACTERS = 300
_GRAMMAR = re.compile(r"Failed to compile \w+ grammar: ?(.*)", re.DOTALL)
_GRAMMAR_TIMEOUT = "Grammar preprocessing timed out"
# Where in its own source xgrammar found the mistake.
_PLACE = re.compile(r"^\[[\d:.]+\] \S+:\d+: ")

# The plugin's refusals by the name of their class.
_REFUSALS: dict[str, Callable[[str], PresiftError]] = {
    "RouteUnsupported": lambda message: RouteUnsupported("kv_plan", "set", "unset", message),
    "InvalidRequest": lambda message: InvalidRequest("kv_plan", "refused", "a plan that can be applied", message),
    "PromptTooLong": lambda message: PromptTooLong("token_ids", "refused", "fewer", message),
    "BudgetExceeded": lambda message: BudgetExceeded("kv_plan", "refused", "a larger capacity", message),
    "InternalError": InternalError,
}


def aborted(reason: dict[str, Any], request: GenerateRequest) -> PresiftError:
    """The error of an abort with SGLang's `reason`."""
    message = str(reason.get("message") or "the engine aborted the request")
    owner, _, kind = str(reason.get("err_type") or "").partition(".")
    if owner == custom_params.KEY and kind in _REFUSALS:
        return _REFUSALS[kind](message)
    if reason.get("status_code") == 400:
        if (why := _why_no_grammar(message)) is not None:
            return _bad_grammar(request, why)
        return InternalError("SGLang refused a request that presift had accepted")
    return TargetUnavailable(message)


def _why_no_grammar(message: str) -> str | None:
    """Why a grammar could not be compiled; None if `message` is about something else."""
    if message.startswith(_GRAMMAR_TIMEOUT):
        return "it takes too long"
    found = _GRAMMAR.match(message)
    if found is None:
        return None
    reason = _PLACE.sub("", found[1].strip())[:_MAX_REASON_CHARACTERS].strip()
    return reason or "it is malformed"


def _bad_grammar(request: GenerateRequest, why: str) -> InvalidRequest:
    grammar = request.sampling.grammar
    field = "format.tools_json" if grammar is None else f"sampling.{grammar.kind}"
    return InvalidRequest(field, "refused", "a grammar that can be compiled", f"{field} cannot be compiled: {why}")
