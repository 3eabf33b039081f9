"""The orchestrator: tokenize, protect, route, compress, stream. Knows no model: draft and target are ports."""
