"""Splits an explained prompt into pieces of text by importance (heat) and by how much is kept (hold). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from presift_client import ExplainedSpan, Explanation

HEAT_LEVELS, HOLD_LEVELS = 9, 4
# A few tokens get most of the attention: without a cap and a gentle curve all others would look the same.
_HOTTEST_QUANTILE, _CURVE = 0.99, 0.75


@dataclass(frozen=True, slots=True)
class Piece:
    """Adjacent tokens `start <= token < end` that look the same.

    `heat` 0..HEAT_LEVELS is their importance per token. `hold` is 0 if they are dropped, HOLD_LEVELS if every layer and
    head keeps them, and in between if some do. `importance` is their share of the prompt's importance, 0..1.
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
    """The whole prompt, in order. If the prompt has no text, each piece shows its token positions."""
    hottest = _hottest(explanation)
    texts = _texts(explanation)
    styled = ((_look(span, hottest), span, text) for span, text in zip(explanation.spans, texts, strict=True))
    runs = groupby(styled, key=lambda each: each[0])
    return [_piece(look, [each[1:] for each in run], has_text=bool(explanation.text)) for look, run in runs]


def printable(text: str) -> str:
    """`text` with control characters and marks of writing direction replaced by visible signs."""
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
    return float(np.quantile(densities, _HOTTEST_QUANTILE) or densities.max()) if densities.size else 0.0


def _texts(explanation: Explanation) -> Iterator[str]:
    """The text of each span; together they are the whole text.

    Characters without a token go to the next span, those at the end to the last one. A character that several tokens
    share (each has some of its bytes) goes to the first.
    """
    start, last = 0, len(explanation.spans) - 1
    for index, span in enumerate(explanation.spans):
        end = start if span.characters is None else max(start, span.characters[1])
        end = len(explanation.text) if index == last else end
        yield explanation.text[start:end]
        start = end


# Unicode has pictures for C0 controls (tab and line feed stay), but none for C1 controls and marks of direction.
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if code not in (9, 10)} | {0x7F: 0x2421}
_DIRECTIONS = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SIGNS = _CONTROLS | dict.fromkeys(_DIRECTIONS, 0xFFFD)
