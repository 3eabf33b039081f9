"""Whether an answer is right."""

import pytest

from presift.cli.evaluation.scorers import SCORERS

LETTERS = ("A", "B", "C")


@pytest.mark.parametrize(
    ("scorer", "answer", "expected", "choices", "right"),
    [
        ("contains", "It was  in\nPARIS, in 2024.", ["Paris", "2024"], (), True),
        ("contains", "It was in Paris.", ["Paris", "2024"], (), False),
        ("contains", "It was in 20245.", ["2024"], (), False),
        ("contains", "UTC+5!", ["utc+5"], (), True),
        ("contains", "12024", ["2024"], (), False),
        ("contains", "ﬁve", ["five"], (), True),
        ("contains_any", "Lutetia", ["Paris", "Lutetia"], (), True),
        ("contains_any", "London", ["Paris", "Lutetia"], (), False),
        ("contains_share", "Paris and 2024", ["Paris", "2024"], (), 1.0),
        ("contains_share", "Paris, 20245", ["Paris", "2024", "May", "UTC"], (), 0.25),
        ("exact", " Paris.\n", ["paris"], (), True),
        ("exact", "in Paris", ["paris"], (), False),
        ("choice", "B", ["B"], LETTERS, True),
        ("choice", "(B) because A is not", ["B"], LETTERS, True),
        ("choice", "A is wrong. The answer is **B**.", ["B"], LETTERS, True),
        ("choice", "Answer: C or B", ["B"], LETTERS, False),
        ("choice", "Bananas", ["B"], LETTERS, False),
        ("choice", "New York City", ["New York City"], ("New York", "New York City"), True),
        ("choice", "New York", ["New York City"], ("New York", "New York City"), False),
    ],
)
def test_scores(scorer, answer, expected, choices, right):
    assert SCORERS[scorer](answer, expected, choices) == float(right)
