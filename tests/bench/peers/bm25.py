"""BM25 (Okapi): the passages whose words the question has, the rare ones above all."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from peers.passages import Ranking, sentences

# The usual values of the literature and of Lucene.
_K1, _B = 1.2, 0.75


class Bm25(Ranking):
    """Passages by their score; of equal ones the earlier first."""

    def pieces(self, text: str) -> list[str]:
        return sentences(text)

    def ranked(self, pieces: Sequence[str], question: str) -> Sequence[int]:
        scores = bm25(list(map(_words, pieces)), _words(question))
        return sorted(range(len(pieces)), key=lambda index: -scores[index])


def bm25(documents: Sequence[Sequence[str]], query: Sequence[str]) -> list[float]:
    """The score of each document, a list of words."""
    counts = [Counter(words) for words in documents]
    containing = Counter(word for count in counts for word in count)
    mean = sum(map(len, documents)) / max(1, len(documents)) or 1.0
    scores = []
    for words, count in zip(documents, counts, strict=True):
        score, length = 0.0, _K1 * (1 - _B + _B * len(words) / mean)
        for word in dict.fromkeys(query):
            weight = math.log(1 + (len(documents) - containing[word] + 0.5) / (containing[word] + 0.5))
            score += weight * count[word] * (_K1 + 1) / (count[word] + length)
        scores.append(score)
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
