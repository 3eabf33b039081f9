"""When an answer mentions something new of its prompt."""

from __future__ import annotations

from array import array

import pytest

from presift.target.sglang_plugin.new_mentions import NewMentions

RARE, COMMON, ABSENT = 7, 5, 99
WINDOW = 6
# RARE stands 8 times in the prompt, and COMMON 9 times; 8 stands there once.
PROMPT = array("q", [COMMON] * 9 + [RARE] * 8 + [8])
DULL = [COMMON] * 10


@pytest.mark.parametrize(
    ("answer", "selected", "are_due"),
    [
        (DULL, 0, False),
        ([ABSENT] * 10, 0, False),
        ([*DULL, RARE], 0, True),
        ([8, *DULL], 0, True),
        # The newest selection has read it.
        ([8, *DULL], 1, False),
        ([*DULL, RARE], 10, False),
        ([*DULL, RARE, COMMON, COMMON, COMMON], 10, True),
        # It is not new: one of the tokens before it is the same.
        ([RARE, *[COMMON] * (WINDOW - 1), RARE], 1, False),
        ([RARE, *[COMMON] * WINDOW, RARE], 1, True),
        # The selection has not lasted.
        ([RARE, COMMON, COMMON], 0, False),
        ([RARE, COMMON, COMMON, COMMON], 0, True),
    ],
    ids=str,
)
def test_a_new_mention_is_a_rare_token_that_the_answer_has_not_had_lately(
    answer: list[int], selected: int, are_due: bool
) -> None:
    mentions = NewMentions(PROMPT)
    mentions.restart(selected)
    assert mentions.observe(answer, WINDOW) is are_due


def test_each_token_is_looked_at_once_and_a_mention_stays_until_the_next_selection() -> None:
    mentions, answer = NewMentions(PROMPT), [COMMON, RARE]
    assert not mentions.observe(answer, WINDOW)
    assert mentions.observe([*answer, *DULL], WINDOW)
    # An answer only grows; that it is other tokens here shows that they are not read again.
    assert mentions.observe([ABSENT] * 12, WINDOW)

    mentions.restart(12)
    assert not mentions.observe([ABSENT] * 20, WINDOW)


def test_ids_beyond_all_of_the_prompt_and_no_prompt_at_all() -> None:
    assert not NewMentions(array("q", [1 << 40])).observe([3, 4, 5, 6, 1 << 41], WINDOW)
    assert NewMentions(array("q", [1 << 40])).observe([3, 4, 5, 6, 1 << 40], WINDOW)
    assert not NewMentions(array("q")).observe([3, 4, 5, 6], WINDOW)
