"""OpenAI's Responses API, without stored answers."""
