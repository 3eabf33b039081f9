"""The OpenAI-compatible HTTP door: another way into the same pipeline, with the same callers, limits and refusals."""
