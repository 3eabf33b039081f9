"""Spans: half-open ranges of prompt tokens, such as protected ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The prompt tokens `start <= i < end`. Raises InvalidRequest unless 0 <= start < end."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.end <= self.start:
            raise InvalidRequest("protected_spans", f"[{self.start}, {self.end})", "0 <= start < end")

    def __len__(self) -> int:
        return self.end - self.start


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The canonical form: the same tokens as ascending spans that neither overlap nor touch."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return tuple(merged)


def check_within(spans: Iterable[Span], prompt_tokens: int) -> None:
    """Raise InvalidRequest if a span ends beyond the prompt."""
    for span in spans:
        if span.end > prompt_tokens:
            raise InvalidRequest(
                "protected_spans", f"[{span.start}, {span.end})", f"end <= {prompt_tokens} (the prompt's tokens)"
            )


def covered(spans: Iterable[Span], prompt_tokens: int) -> NDArray[np.bool_]:
    """bool[prompt_tokens]: True inside a span. Raises InvalidRequest if one ends beyond the prompt."""
    flags = np.zeros(prompt_tokens, dtype=np.bool_)
    for span in spans:
        check_within((span,), prompt_tokens)
        flags[span.start : span.end] = True
    return flags


def spans_of(flags: NDArray[np.bool_]) -> tuple[Span, ...]:
    """The maximal runs of True in bool[n], ascending: the inverse of `covered`."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return tuple(Span(int(start), int(end)) for start, end in edges.reshape(-1, 2))


def must_keep(protected: Iterable[Span], prompt_tokens: int, window: int) -> NDArray[np.bool_]:
    """bool[prompt_tokens]: the tokens that every policy keeps: protected spans and the last `window` tokens."""
    flags = covered(protected, prompt_tokens)
    flags[max(0, prompt_tokens - window) :] = True
    return flags


def must_keep_kv(protected: Iterable[Span], prompt_tokens: int, window: int) -> NDArray[np.bool_]:
    """bool[prompt_tokens - 1]: the KV that every policy keeps, of protected spans and of the `window` tokens before
    the final one. The final token does not count, because it is read again and its KV is new.
    """
    return must_keep(protected, prompt_tokens, window + 1)[:-1]


def moved(protected: Iterable[Span], kept: NDArray[np.bool_]) -> tuple[Span, ...]:
    """The spans by their positions among the kept tokens, `kept` bool[n]. Spans that become adjacent are merged."""
    return spans_of(covered(protected, int(kept.size))[kept])
