"""The draft's table of limits: how much one Score request may hold, and how wide its policies may be."""

from __future__ import annotations

from presift.core.limits import MAX_PROMPT_TOKENS, MAX_SPANS, Limit

# The widest kernel and neighbourhood: their cost grows with width x prompt, and one wide request would stall all
# others.
MAX_WIDTH_TOKENS = 4096

SCORE: tuple[Limit, ...] = (
    Limit("token_ids", MAX_PROMPT_TOKENS, "tokens", lambda asked: len(asked.token_ids)),
    Limit("protected_spans", MAX_SPANS, "spans", lambda asked: len(asked.protected_spans)),
)
