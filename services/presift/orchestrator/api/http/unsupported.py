"""OpenAI's parameters that presift does not support: rejected by name unless their value requests nothing.

Neutral values are accepted because frameworks send them by default. null is the same as leaving a parameter out.
"""

from __future__ import annotations

from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.errors import brief

# For the caller's own bookkeeping, or for a service other than this one: they change no answer.
WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user"}
)
# The values that request nothing. A parameter without any is always rejected.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}


def supported_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """The parameters to validate and carry out. Raises InvalidRequest for an unsupported one."""
    supported = {name: value for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT}
    for name in [name for name in supported if name in NEUTRAL]:
        value = supported.pop(name)
        if not any(_is_same(value, neutral) for neutral in NEUTRAL[name]):
            neutral = " or ".join(str(each) for each in NEUTRAL[name])
            limit = "left out" + (f", or {neutral}" if neutral else "") + ": this server does not support it"
            raise InvalidRequest(name, brief(value), limit)
    return supported


def _is_same(value: object, neutral: object) -> bool:
    # False == 0 in Python; not in JSON.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
