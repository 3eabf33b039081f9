"""What the protos' fields are called here: a refusal names what its caller wrote."""

from __future__ import annotations

# The first whose beginning matches is taken; what is behind it stays.
_PARAMETERS: tuple[tuple[str, str], ...] = (
    ("prompt.chat.messages.tool_calls_json", "messages.tool_calls"),
    ("prompt.chat.messages.parts", "messages.content"),
    ("prompt.chat.messages", "messages"),
    ("prompt.chat.tools_json", "tools"),
    ("prompt.chat", "messages"),
    ("prompt.text", "prompt"),
    ("prompt.token_ids", "prompt"),
    ("prompt.protected_spans", "presift.protected_spans"),
    ("sampling.max_new_tokens", "max_tokens"),
    ("sampling.top_k", "presift.sampling.top_k"),
    ("sampling.stop_token_ids", "presift.sampling.stop_token_ids"),
    ("sampling.", ""),
    ("budget", "presift.budget"),
    ("kv.", "presift.kv."),
    ("route", "presift.route"),
    ("token_ids", "prompt"),
)


def parameter_of(field: str) -> str:
    """The parameter of a request here that became `field`; what has no other name keeps its own."""
    found = ((theirs, ours) for theirs, ours in _PARAMETERS if field.startswith(theirs))
    theirs, ours = next(found, ("", ""))
    return ours + field.removeprefix(theirs)
