"""How long an answer may be: a caller's `max_new_tokens` is an upper bound, which the target's context cuts. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.core.generation import Sampling
from presift.orchestrator.domain.request import Request

# Libraries fill in max_new_tokens of 16,000 to 128,000, and few answers are that long. So a prompt that fits is
# compressed only if even this much room would be missing.
_LEAST_ROOM = 256


def reserved_tokens(
    sampling: Sampling, prompt_tokens: int, must_keep: int, context_tokens: int, *, is_default: bool = False
) -> int:
    """The tokens that routing reserves for the answer, >= 1; all counts in tokens.

    If the prompt fits, the answer gets the room that is left; a prompt is compressed for the answer only if less than
    `_LEAST_ROOM`, or `min_new_tokens`, would be left. If the length `is_default`, only `min_new_tokens` counts.
    Otherwise prompt and answer share the context equally, after the `must_keep` protected tokens.
    """
    asked, least_tokens = sampling.max_new_tokens, sampling.least_tokens
    room, shared = context_tokens - prompt_tokens, context_tokens - must_keep
    wanted = 1 if is_default else min(asked, _LEAST_ROOM, shared)
    least = max(wanted, least_tokens)
    return min(asked, room if room >= least else max(least, shared // 2))


def cut_to_context(request: Request, read_tokens: int, context_tokens: int) -> Request:
    """The request with an answer that fits the context after the `read_tokens` that the target reads of its prompt."""
    asked, room = request.sampling.max_new_tokens, context_tokens - read_tokens
    if asked <= room:
        return request
    uncut = request.uncut_max_new_tokens or asked
    return replace(request, sampling=replace(request.sampling, max_new_tokens=room), uncut_max_new_tokens=uncut)
