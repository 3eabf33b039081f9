"""Size limits of Score requests and of their policies."""

from __future__ import annotations

from presift.core.limits import MAX_PROMPT_TOKENS, MAX_SALT_CHARACTERS, MAX_SPANS, Limit

# The maximum kernel and neighbors. Their cost grows with width x prompt, and one wide request would delay all others.
MAX_WIDTH_TOKENS = 4096

SCORE: tuple[Limit, ...] = (
    Limit("token_ids", MAX_PROMPT_TOKENS, "tokens", lambda message: len(message.token_ids)),
    Limit("cache_salt", MAX_SALT_CHARACTERS, "characters", lambda message: len(message.cache_salt)),
    Limit("protected_spans", MAX_SPANS, "spans", lambda message: len(message.protected_spans)),
)
