"""Size limits of Generate and Prefill requests."""

from __future__ import annotations

from presift.core.limits import (
    MAX_KV_MASK_BYTES,
    MAX_LOOKAHEAD_TOKENS,
    MAX_PROMPT_TOKENS,
    MAX_SALT_CHARACTERS,
    MAX_SPANS,
    MAX_TEMPLATE_KWARGS_CHARACTERS,
    MAX_TOOLS,
    MAX_TOOLS_CHARACTERS,
    SAMPLING,
    Limit,
)

PREFILL: tuple[Limit, ...] = (
    Limit("token_ids", MAX_PROMPT_TOKENS, "tokens", lambda message: len(message.token_ids)),
    Limit("cache_salt", MAX_SALT_CHARACTERS, "characters", lambda message: len(message.cache_salt)),
)
GENERATE: tuple[Limit, ...] = (
    *PREFILL,
    *SAMPLING,
    Limit("kv_plan.protected_spans", MAX_SPANS, "spans", lambda message: len(message.kv_plan.protected_spans)),
    Limit(
        "kv_plan.lookahead_token_ids",
        MAX_LOOKAHEAD_TOKENS,
        "token ids",
        lambda message: len(message.kv_plan.lookahead_token_ids),
    ),
    Limit("format.tools_json", MAX_TOOLS, "tools", lambda message: len(message.format.tools_json)),
    Limit(
        "format.tools_json",
        MAX_TOOLS_CHARACTERS,
        "characters",
        lambda message: sum(map(len, message.format.tools_json)),
    ),
    Limit(
        "format.template_kwargs_json",
        MAX_TEMPLATE_KWARGS_CHARACTERS,
        "characters",
        lambda message: len(message.format.template_kwargs_json),
    ),
    Limit("kv_plan.kv_mask.kept", MAX_KV_MASK_BYTES, "bytes", lambda message: len(message.kv_plan.kv_mask.kept)),
)
