"""How long an answer may be: a caller's `max_new_tokens` is an upper bound, which the target's context cuts. Pure."""

from __future__ import annotations

from dataclasses import replace

from presift.orchestrator.domain.request import Request

# With less room for an answer of which the caller asked for more, a prompt is compressed instead.
_LEAST_ROOM = 256


def reserved_tokens(request: Request, prompt_tokens: int, must_keep: int, context_tokens: int) -> int:
    """The tokens that routing reserves for the answer, >= 1; all counts in tokens.

    A prompt that fits the context is not compressed for the sake of an answer that is hardly ever as long as it may be:
    only if the caller set its length and less than `_LEAST_ROOM` would be left. A prompt that must be compressed shares
    what the `must_keep` protected tokens leave equally with the answer, so that a bound as large as the context keeps
    some of the prompt.
    """
    asked, room = request.sampling.max_new_tokens, context_tokens - prompt_tokens
    wanted = 1 if request.has_default_length else min(asked, _LEAST_ROOM)
    least = max(wanted, request.sampling.min_new_tokens or 1)
    if room >= least:
        return min(asked, room)
    return min(asked, max(least, (context_tokens - must_keep) // 2))


def cut_to_context(request: Request, read_tokens: int, context_tokens: int) -> Request:
    """The request with an answer that fits the context after the `read_tokens` that the target reads of its prompt."""
    asked, room = request.sampling.max_new_tokens, context_tokens - read_tokens
    if asked <= room:
        return request
    return replace(request, sampling=replace(request.sampling, max_new_tokens=room), cut_from=request.cut_from or asked)
