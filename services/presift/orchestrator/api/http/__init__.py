"""The OpenAI-compatible HTTP API: the same pipeline, callers, limits and errors as over gRPC."""
