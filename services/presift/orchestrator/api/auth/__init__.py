"""Who calls, on whose account, and how much they may: API keys, tokens, tenants, limits."""
