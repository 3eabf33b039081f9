"""Documents in a string: `<document>` tags as parts of a message, for callers that build prompts as text."""

from __future__ import annotations

import re
from typing import Any

_OPENING, _CLOSING = r"<document(?:\s[^<>]*)?>", r"</document>"
_TAG = re.compile(f"({_OPENING})|{_CLOSING}")


def document_parts(text: str) -> list[dict[str, Any]]:
    """The content of a message in which what stands between `<document>` (attributes allowed) and `</document>` is
    marked as a document. The tags are no part of it: they are kept, and the parts together are `text`.

    Raises ValueError, naming the character, for a tag without its other half or a document within a document.
    """
    cuts, inside = [0], False
    for tag in _TAG.finditer(text):
        if inside == bool(tag[1]):
            raise ValueError(
                f"{tag[0]} at character {tag.start()} {'is within a document' if inside else 'closes none'}"
            )
        inside = not inside
        cuts.append(tag.end() if inside else tag.start())
    if inside:
        raise ValueError(f"the document that begins at character {cuts[-1]} has no </document>")
    pieces = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [{"text": piece, "document": bool(number % 2)} for number, piece in enumerate(pieces) if piece or number % 2]
