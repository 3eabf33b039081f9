"""Cuts the text of an answer into pieces."""

from __future__ import annotations

import re

# The marks of chat formats (<tool_call>, ◁think▷, [TOOL_CALLS]) are one token each in most vocabularies.
_PIECE = re.compile(r"<[^<>\s]{1,63}>|◁[^◁▷\s]{1,63}▷|\[/?[A-Z_]{2,32}\]|\w{1,32}|.", re.DOTALL)
_UNFINISHED_MARK = re.compile(r"(<[^<>\s]{0,63}|◁[^◁▷\s]{0,63}|\[/?[A-Z_]{0,32})\Z")


class TextPieces:
    """Cuts text into marks, words and single characters, wherever it was cut when it arrived.

    SGLang's streaming parsers expect about a token at a time. They lose text if a call arrives with what surrounds it,
    and do not recognize every mark that arrives in two parts.
    """

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[str]:
        """The next pieces. A mark that may be unfinished is held back."""
        text = self._held + text
        unfinished = _UNFINISHED_MARK.search(text)
        end = len(text) if unfinished is None else unfinished.start()
        self._held = text[end:]
        return _PIECE.findall(text[:end])

    def finish(self) -> list[str]:
        """What was held back."""
        held, self._held = self._held, ""
        return [held] if held else []
