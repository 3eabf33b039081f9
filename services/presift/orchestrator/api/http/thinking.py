"""Reasoning parameters as variables of the target's chat template: whether the model reasons, and how much."""

from __future__ import annotations

from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.schema import ChatBody

# The names that templates have for it, as SGLang's server sets them.
_SWITCHES = frozenset({"enable_thinking", "thinking"})
_EFFORT = "reasoning_effort"
# Allowed where the template can do nothing about reasoning.
NO_VARIABLE = "left out: the target's chat template has no variable for reasoning"


def thinking_variables(body: ChatBody, template: frozenset[str]) -> dict[str, Any]:
    """The variables that the template reads. An effort whose degree it does not know turns reasoning on or off.

    Raises InvalidRequest if the template can do nothing of what is asked for.
    """
    (parameter, effort), (switch, is_enabled) = _effort(body), _switch(body)
    if effort is not None and is_enabled is None:
        switch, is_enabled = parameter, effort != "none"
    variables: dict[str, Any] = {} if is_enabled is None else dict.fromkeys(_SWITCHES & template, is_enabled)
    if effort is not None and _EFFORT in template:
        variables[_EFFORT] = effort
    if is_enabled and not variables:
        raise InvalidRequest(switch, brief(is_enabled if switch != parameter else effort), NO_VARIABLE)
    return variables


def _effort(body: ChatBody) -> tuple[str, Any]:
    """The parameter, and its value."""
    if body.reasoning_effort is None and body.reasoning is not None:
        return "reasoning.effort", body.reasoning.effort
    return _EFFORT, body.reasoning_effort


def _switch(body: ChatBody) -> tuple[str, bool | None]:
    if body.enable_thinking is None and body.reasoning is not None:
        return "reasoning.enabled", body.reasoning.enabled
    return "enable_thinking", body.enable_thinking


def knows_thinking(template: frozenset[str]) -> bool:
    """Whether the template can turn reasoning on and off."""
    return bool(_SWITCHES & template)


def can_turn_on(template: frozenset[str], effort: str | None) -> bool:
    """Whether the template has a variable for reasoning of this effort, None if the caller names none."""
    return knows_thinking(template) or (effort not in (None, "none") and _EFFORT in template)


def knows_effort(body: ChatBody, template: frozenset[str]) -> bool:
    """Whether the template knows the degree of effort that the body names, if it names one."""
    _, effort = _effort(body)
    return effort in (None, "none") or _EFFORT in template
