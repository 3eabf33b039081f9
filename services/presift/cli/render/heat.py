"""Heat: an explanation as pieces of text, each as hot as it is important and as bright as it is kept. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from presift_client import ExplainedSpan, Explanation

HEAT_LEVELS, HOLD_LEVELS = 9, 4
# A few tokens draw most of the attention: without a cap and a gentle curve all others would look the same.
_HOTTEST, _CURVE = 0.99, 0.75


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens `start <= token < end` that look the same.

    `heat` 0..HEAT_LEVELS is their importance per token; `hold` is 0 where they are dropped, HOLD_LEVELS where they are
    kept in every layer and head, between where in some. `importance` is their share of the prompt's, 0..1.
    """

    text: str
    start: int
    end: int
    heat: int
    hold: int
    protected: bool
    importance: float


class _Look(NamedTuple):
    heat: int
    hold: int
    protected: bool


def pieces(explanation: Explanation) -> list[Piece]:
    """The whole prompt, in order. Where it has no text, a piece's text says its tokens."""
    hottest = _hottest(explanation)
    texts = _texts(explanation)
    looked = ((_look(span, hottest), span, text) for span, text in zip(explanation.spans, texts, strict=True))
    runs = groupby(looked, key=lambda each: each[0])
    return [_piece(look, [each[1:] for each in run], has_text=bool(explanation.text)) for look, run in runs]


def printable(text: str) -> str:
    """`text` without what would act on a terminal or turn the reading order around: those become visible signs."""
    return text.translate(_SIGNS)


def _piece(look: _Look, run: list[tuple[ExplainedSpan, str]], *, has_text: bool) -> Piece:
    start, end = run[0][0].start, run[-1][0].end
    return Piece(
        text=printable("".join(text for _, text in run)) if has_text else f"[{start}..{end}) ",
        start=start,
        end=end,
        heat=look.heat,
        hold=look.hold,
        protected=look.protected,
        importance=math.fsum(span.importance for span, _ in run),
    )


def _look(span: ExplainedSpan, hottest: float) -> _Look:
    density = span.importance / span.tokens
    heat = min(1.0, density / hottest) ** _CURVE if hottest else 0.0
    return _Look(round(heat * HEAT_LEVELS), _hold(span), span.protected)


def _hold(span: ExplainedSpan) -> int:
    share = float(span.kept) if span.kept_share is None else span.kept_share
    return HOLD_LEVELS if share >= 1 else math.ceil(share * (HOLD_LEVELS - 1))


def _hottest(explanation: Explanation) -> float:
    """The importance per token that is shown as the highest."""
    tokens = [span.tokens for span in explanation.spans]
    densities = np.repeat([span.importance / span.tokens for span in explanation.spans], tokens)
    return float(np.quantile(densities, _HOTTEST) or densities.max()) if densities.size else 0.0


def _texts(explanation: Explanation) -> Iterator[str]:
    """Each span's text, all of it in all: what no token holds goes with the next, what follows the last with the last.

    Tokens may share a character (parts of its bytes): the first has it.
    """
    at, last = 0, len(explanation.spans) - 1
    for number, span in enumerate(explanation.spans):
        end = at if span.characters is None else max(at, span.characters[1])
        end = len(explanation.text) if number == last else end
        yield explanation.text[at:end]
        at = end


# C0 controls have pictures (tab and line feed stay); C1 controls and marks of direction have none.
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if code not in (9, 10)} | {0x7F: 0x2421}
_DIRECTIONS = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SIGNS = _CONTROLS | dict.fromkeys(_DIRECTIONS, 0xFFFD)
