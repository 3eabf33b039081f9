"""Paths as clients write them: base URLs with and without /v1, doubled and trailing slashes. No redirects."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

VERSION = "v1"
# Longer paths are no endpoint's and stay as they are.
MAX_CHARACTERS = 1024

# OpenAI's (and its neighbours') endpoints that this server does not have, by the first part of their paths after /v1.
UNSUPPORTED = {
    "assistants": "assistants",
    "audio": "audio",
    "batches": "batches",
    "chatkit": "chat sessions",
    "classify": "classification",
    "containers": "containers",
    "conversations": "stored conversations",
    "embeddings": "embeddings",
    "evals": "evaluations",
    "files": "files",
    "fine_tuning": "fine-tuning",
    "images": "pictures",
    "moderations": "moderation",
    "pooling": "pooling",
    "realtime": "realtime sessions",
    "rerank": "reranking",
    "score": "scoring",
    "skills": "skills",
    "threads": "threads",
    "uploads": "uploads",
    "vector_stores": "vector stores",
    "videos": "videos",
}
# Where OpenAI's clients look for stored answers.
STORED_AT = (f"/{VERSION}/responses", f"/{VERSION}/chat/completions")
# Other endpoints below them.
NOT_STORED = (f"/{VERSION}/responses/compact", f"/{VERSION}/responses/input_tokens")


class CanonicalPaths:
    """Wraps an application whose endpoints have `names` (the first parts of their paths) below /v1."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(names) | UNSUPPORTED.keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = canonical_path(scope["path"], self._names)
        await self._app(scope if path == scope["path"] else {**scope, "path": path}, receive, send)


def canonical_path(path: str, names: Iterable[str]) -> str:
    """`//v1/v1/chat/completions/` and `/chat/completions` are `/v1/chat/completions`, if `chat` is in `names`."""
    if len(path) > MAX_CHARACTERS:
        return path
    parts = [part for part in path.split("/") if part]
    rest = parts
    while rest[:1] == [VERSION]:
        rest = rest[1:]
    is_versioned = len(rest) < len(parts) or (rest[:1] and rest[0] in names)
    return "/" + "/".join([VERSION, *rest] if is_versioned else rest)


def why_unknown(method: str, path: str) -> str:
    """Why no endpoint answers on a canonical path: OpenAI's clients know more endpoints than this server has."""
    is_below = any(path.startswith(f"{each}/") for each in STORED_AT) and path not in NOT_STORED
    if is_below or (method == "GET" and path in STORED_AT):
        return "answers are not stored, so none can be listed, retrieved, cancelled or deleted"
    _, version, name, *_ = [*path.split("/"), "", ""]
    if version == VERSION and name in UNSUPPORTED:
        return f"this server has no endpoint for {UNSUPPORTED[name]}"
    return "unknown path or method"
