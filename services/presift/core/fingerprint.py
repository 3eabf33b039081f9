"""The fingerprint of a tokenizer: equal for two models whose token ids mean the same.

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

    It leaves out formatting, pre-tokenizer, normalizer, decoder and the flag "special": they do not change the meaning
    of an id, and converters disagree on them. Converters also list added tokens in different places (in the vocabulary
    too, or only as added), so both lists count as one.
    """
    try:
        canonical = json.dumps(_canonical(json.loads(tokenizer_json)), sort_keys=True, separators=(",", ":"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InvalidRequest("tokenizer.json", "no vocabulary", "a tokenizer of the `tokenizers` library") from None
    return hashlib.sha256(canonical.encode()).hexdigest()


def _canonical(document: Any) -> dict[str, Any]:
    model, added = document["model"], document.get("added_tokens") or []
    tokens = _vocabulary(model) | {entry["content"]: entry["id"] for entry in added}
    return {
        "vocabulary": sorted(tokens.items()),
        "scores": [score for _, score in model["vocab"]] if isinstance(model["vocab"], list) else [],
        "merges": [_pair(merge) for merge in model.get("merges") or ()],
        "added": sorted((entry["id"], entry["content"]) for entry in added),
    }


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """token -> id. Unigram models have a list of [token, score] in the order of ids instead."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _pair(merge: str | list[str]) -> list[str]:
    """Older files write a merge as "a b", newer ones as ["a", "b"]."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
