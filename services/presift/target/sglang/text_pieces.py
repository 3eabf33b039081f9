"""Cuts the text of an answer into pieces, and holds back what may be the beginning of a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


class StopStrings:
    """Cuts an answer before the stop string that ended it. SGLang would already have sent the string's beginning."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._beginnings = {each[:length] for each in strings for length in range(1, len(each))}
        self._longest = max(map(len, strings), default=1) - 1
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certainly part of the answer."""
        text = self._held + text
        longest = min(self._longest, len(text))
        held = next((size for size in range(longest, 0, -1) if text[-size:] in self._beginnings), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self, text: str, matched: object) -> str:
        """The end of the answer, with the last `text`. `matched`: the stop string that ended it, if one did."""
        text, self._held = self._held + text, ""
        return text[: text.index(matched)] if isinstance(matched, str) and matched in text else text
