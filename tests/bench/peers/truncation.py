"""Truncation: as much of the beginning as of the end of the text, without its middle, as LongBench does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peers.passages import Ranking


class Truncation(Ranking):
    """Words from both ends in turns, the beginning first."""

    def pieces(self, text: str) -> list[str]:
        return re.findall(r"\S*\s+|\S+", text)

    def ranked(self, pieces: Sequence[str], question: str) -> Sequence[int]:
        count = len(pieces)
        return [number // 2 if number % 2 == 0 else count - 1 - number // 2 for number in range(count)]
