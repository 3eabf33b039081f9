"""Authentication: API keys and tokens, the tenants that they prove, and the tenants' limits."""
