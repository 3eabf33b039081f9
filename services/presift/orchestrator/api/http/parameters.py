"""OpenAI's parameters that are not carried out here: refused by name unless they ask for nothing.

Neutral values are taken, as frameworks send them unasked; null is the same as leaving a parameter out.
"""

from __future__ import annotations

from typing import Any

from presift.core.errors import InvalidRequest

# For the caller's own book-keeping, or for a service that is not this one: they change no answer.
WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user"}
)
# The values that ask for nothing. Without any the parameter is refused, whatever it says.
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


def carried_out(given: dict[str, Any]) -> dict[str, Any]:
    """What is left to be carried out. Raises InvalidRequest, naming the parameter, for what cannot be."""
    wanted = {name: value for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT}
    for name in [name for name in wanted if name in NEUTRAL]:
        value = wanted.pop(name)
        if not any(_is_same(value, neutral) for neutral in NEUTRAL[name]):
            neutral = " or ".join(str(each) for each in NEUTRAL[name])
            limit = "left out" + (f", or {neutral}" if neutral else "") + ": it is not supported here"
            raise InvalidRequest(name, brief(value), limit)
    return wanted


def brief(value: object) -> str:
    """A value as an error may show it: numbers and short words; of all else the kind alone."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a large number"
    if value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 32):
        return repr(value)
    kinds: tuple[tuple[type[object], str], ...] = ((str, "a long text"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "another value")


def _is_same(value: object, neutral: object) -> bool:
    # False == 0 in Python; not in JSON.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
