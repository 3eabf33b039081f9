"""Answers, examples and their results."""

import pytest

from presift.cli.evaluation.arms import arms_of
from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.results import Answer, Key


@pytest.fixture
def answer():
    """A text with the fields that a test is about -> an answer; a token for each character."""

    def answer(text, **changes):
        values = {
            "route": "full", "reason": "requested", "prompt_tokens": 1000, "read_tokens": 1000, "kv_tokens": 1000,
            "coverage": None, "completion_tokens": 11, "finish_reason": "stop", "ttft_ms": 100.0, "total_ms": 300.0,
            "first_reading": True,
        }  # fmt: skip
        return Answer(text, tuple(map(ord, text)), **values | changes)

    return answer


@pytest.fixture
def compared(answer):
    """Texts of full and of an arm, for each prompt, and what is expected (the same of all) -> examples, arms and
    results; `changes` are those of the arm's answers."""

    def compared(*pairs, expected=("yes",), choices=(), scorer="contains", **changes):
        arms = arms_of("spec_pc", "512")
        changes = {"route": "spec_pc", "read_tokens": 250, "kv_tokens": 250, "total_ms": 200.0} | changes
        examples, results = [], {}
        for number, texts in enumerate(pairs):
            examples.append(Example(f"q{number}", {"prompt": f"prompt {number}"}, expected, choices, scorer))
            for arm, text, values in zip(arms, texts, ({}, changes), strict=True):
                if text is not None:
                    found = answer(text, **values) if isinstance(text, str) else text
                    results[Key(examples[-1].digest, arm.name)] = found
        return examples, arms, results

    return compared
