"""Splits text at its `<document>` tags into message parts, for callers that build prompts as text."""

from __future__ import annotations

import re
from typing import Any

_OPENING, _CLOSING = r"<document(?:\s[^<>]*)?>", r"</document>"
_TAG = re.compile(f"({_OPENING})|{_CLOSING}")


def document_parts(text: str) -> list[dict[str, Any]]:
    """The content of a message: text between `<document>` (attributes allowed) and `</document>` is a document part.

    The tags stay in the parts around it, so that the parts together are `text`. Raises ValueError, naming the
    character, for a tag without its counterpart and for nested documents.
    """
    cuts, inside = [0], False
    for tag in _TAG.finditer(text):
        if inside == bool(tag[1]):
            problem = "is inside another document" if inside else "has no opening tag"
            raise ValueError(f"{tag[0]} at character {tag.start()} {problem}")
        inside = not inside
        cuts.append(tag.end() if inside else tag.start())
    if inside:
        raise ValueError(f"the document that starts at character {cuts[-1]} has no </document>")
    pieces = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [{"text": piece, "document": bool(number % 2)} for number, piece in enumerate(pieces) if piece or number % 2]
