"""What a tokenizer means by its token ids, as one digest: equal for two models that may read each other's ids.

Pure: takes the bytes of a `tokenizer.json`, reads no file. Draft, target and orchestrator must all use this function.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from presift.core.errors import InvalidRequest


def fingerprint(tokenizer_json: bytes) -> str:
    """SHA-256 (64 hex digits) over vocabulary, merges and added tokens. Raises InvalidRequest if there is no
    vocabulary.

    Left out: formatting, pre-tokenizer, normalizer, decoder, and whether a token is called special; they say how text
    is cut or shown, not which token an id is, and converters disagree on them. Where an added token is listed (in the
    vocabulary too, or only by itself) differs between converters as well, so the ids of both lists are taken as one.
    """
    model, added = _parts(tokenizer_json)
    tokens = _vocabulary(model) | {entry["content"]: entry["id"] for entry in added}
    canonical = {
        "vocabulary": sorted(tokens.items()),
        "scores": [score for _, score in model["vocab"]] if isinstance(model["vocab"], list) else [],
        "merges": [_pair(merge) for merge in model.get("merges") or ()],
        "added": sorted((entry["id"], entry["content"]) for entry in added),
    }
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parts(tokenizer_json: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        document = json.loads(tokenizer_json)
        model, added = document["model"], document.get("added_tokens") or []
        model["vocab"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidRequest("tokenizer.json", "no vocabulary", "a tokenizer of the `tokenizers` library") from None
    return model, added


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """token -> id. Unigram models list [token, score] in the order of ids instead."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _pair(merge: str | list[str]) -> list[str]:
    """Older files write a merge as "a b", newer ones as ["a", "b"]."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
