"""Maps the characters that a policy may drop to tokens; all other tokens are protected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding

from presift.core.spans import Span, spans_of
from presift.orchestrator.prompt.chat_frame import Range

# For more, all tokens are listed at once, which holds the interpreter: a look-up takes a time linear in the tokens.
FEW_RANGES = 32


def protected_spans(encoding: Encoding, ranges: tuple[Range, ...], characters: int) -> tuple[Span, ...]:
    """The tokens that do not lie wholly inside `ranges`. A token that crosses a range's border is protected."""
    protected, joined = np.ones(len(encoding.ids), dtype=np.bool_), _joined(ranges)
    for droppable, first, last in zip(joined, *_first_tokens(encoding, joined, characters), strict=True):
        start, end = first, last
        # Special tokens that the tokenizer adds have no characters.
        while start < end and ((held := encoding.token_to_chars(start)) is None or held[0] < droppable.start):
            start += 1
        while start < end and ((held := encoding.token_to_chars(end - 1)) is None or held[1] > droppable.end):
            end -= 1
        protected[start:end] = False
    return spans_of(protected)


def protected_kinds(
    encoding: Encoding, texts: Sequence[tuple[str, Range]], spans: tuple[Span, ...], characters: int
) -> tuple[tuple[str, int], ...]:
    """As TokenizedPrompt.protected_kinds: of the tokens in `spans`, those of each kind in `texts`, then the rest. A
    token that crosses a border counts on one side."""
    counts, ranges = Counter[str](), [each for _, each in texts]
    for (kind, _), start, end in zip(texts, *_first_tokens(encoding, ranges, characters), strict=True):
        counts[kind] += end - start
    rest = sum(span.end - span.start for span in spans) - counts.total()
    if rest > 0:
        counts["tools and template"] = rest
    return tuple((kind, tokens) for kind, tokens in counts.most_common() if tokens)


def _joined(ranges: tuple[Range, ...]) -> list[Range]:
    """Adjacent ranges merged into one: a token across their common border may be dropped."""
    joined = list[Range]()
    for each in ranges:
        start = joined.pop().start if joined and joined[-1].end == each.start else each.start
        joined.append(Range(start, each.end))
    return joined


def _first_tokens(encoding: Encoding, ranges: Sequence[Range], characters: int) -> tuple[list[int], list[int]]:
    """The first token from the start of each range on, and from its end on: that which contains this character or, if a
    normalizer dropped it, the next one that has a token."""
    starts, ends = [each.start for each in ranges], [each.end for each in ranges]
    if len(ranges) <= FEW_RANGES:
        found = [len(encoding.ids) if at >= characters else encoding.char_to_token(at) for at in (*starts, *ends)]
        if None not in found:
            return found[: len(ranges)], found[len(ranges) :]
    # A token ends where the next begins, or later; one without characters counts as ending with the one before.
    last = np.maximum.accumulate([end for _, end in encoding.offsets])
    first, end = (np.searchsorted(last, some, side="right").tolist() for some in (starts, ends))
    return first, end
