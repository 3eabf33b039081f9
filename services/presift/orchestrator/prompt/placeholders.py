"""Numbered placeholders for texts of a chat: the rendered chat shows where the chat template writes these texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from presift.core.errors import InvalidRequest

# Private-use characters, which mean nothing to chat templates. control_tokens.py uses others.
_CODE_POINTS = (range(0xE000, 0xF900), range(0x100001, 0x10FFFE))
_USED = re.compile("[\ue000-\uf8ff\U00100001-\U0010fffd]" + r"|\\u[0-9a-fA-F]{4}")


class Placed(NamedTuple):
    """A placeholder in a text; `after` is the text from its end to the next one. `is_escaped`: its characters are
    written as escapes of JSON."""

    number: int
    is_escaped: bool
    after: str


class Placeholders:
    """Placeholders between two characters that do not occur in `texts`, nor do their escapes in JSON.

    Raises InvalidRequest if the texts have all private-use characters.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        used = {each.lower() for text in texts for each in _USED.findall(text)}
        free = (each for each in map(chr, chain(*_CODE_POINTS)) if used.isdisjoint((each, _escaped(each)[:6])))
        self._first, self._last = next(free, ""), next(free, "")
        if not self._last:
            value, limit = "text with all private-use characters", "text without some of them"
            raise InvalidRequest("prompt.chat.messages", value, limit)
        first, last = (re.escape(_escaped(each)) for each in (self._first, self._last))
        self._pattern = re.compile(rf"(?:{self._first}|({first}))(\d{{7,}})(?:{self._last}|{last})")

    def write(self, number: int) -> str:
        """Nine characters, as Mistral's templates require of a call's id."""
        return f"{self._first}{number:07}{self._last}"

    def split(self, text: str) -> tuple[str, list[Placed]]:
        """What is before the first placeholder, and the placeholders."""
        head, *rest = self._pattern.split(text)
        escapes, numbers, literals = rest[::3], rest[1::3], rest[2::3]
        return head, [
            Placed(int(number), escape is not None, after)
            for escape, number, after in zip(escapes, numbers, literals, strict=True)
        ]

    def numbers(self, text: str) -> set[int]:
        """The numbers of the placeholders in `text`."""
        return {int(match[2]) for match in self._pattern.finditer(text)}

    def replace(self, text: str, original: Callable[[int], str]) -> str:
        """`text` with `original(number)` for each placeholder."""
        return self._pattern.sub(lambda match: as_written(original(int(match[2])), is_escaped=bool(match[1])), text)


def as_written(text: str, *, is_escaped: bool) -> str:
    """`text` as a template writes it, where it writes placeholders as escapes or as they are."""
    return _escaped(text) if is_escaped else text


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]
