"""What a suite is, and what is asked of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from presift.cli.evaluation.suites.foreign_python import ForeignPython, Package
from presift.cli.evaluation.suites.token_counter import TokenCounter

# A line of the JSONL file: the keys that `presift eval` reads.
Line = dict[str, Any]

_LENGTH = re.compile(r"(\d+)(k?)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which prompts of a suite. `lengths` are prompt and answer in the target's tokens; `tasks` are all if empty;
    `seed` 0 is that of the suite's authors, if they have one; `answer_tokens` are reserved where a task sets none."""

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    per_task: int
    seed: int
    answer_tokens: int

    def chosen(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """The wanted ones of all `tasks`, in their order. Raises ValueError for one that is unknown."""
        for task in self.tasks:
            if task not in tasks:
                raise ValueError(f"tasks has '{task}'; each must be one of {', '.join(tasks)}")
        return tuple(task for task in tasks if not self.tasks or task in self.tasks)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a suite's prompts come from: its packages in another Python, and the stack's count of tokens."""

    python: ForeignPython
    packages: Mapping[str, Package]
    counter: TokenCounter


@dataclass(frozen=True, slots=True)
class Suite:
    """`distributions` are the packages that it needs, with the names of their modules, `without_dependencies` those of
    which it needs no dependencies. `least_length` is in tokens. `lines` yields the prompts in their order."""

    name: str
    distributions: Mapping[str, str]
    without_dependencies: frozenset[str]
    needs_sentences: bool
    least_length: int
    lines: Callable[[Wanted, Source], AsyncIterator[Line]]


def lengths_of(words: str, suite: Suite, context_tokens: int) -> tuple[int, ...]:
    """The lengths of a list separated by commas, without repetitions. Raises ValueError."""
    found: dict[int, None] = {}
    for word in (word.strip() for word in words.split(",")):
        match = _LENGTH.fullmatch(word)
        length = int(match[1]) * (1024 if match[2] else 1) if match else 0
        if not suite.least_length <= length <= context_tokens:
            raise ValueError(
                f"lengths has '{word}'; each must be a number of tokens, such as 4096 or 4k, from {suite.least_length} "
                f"(the least of suite {suite.name}) to {context_tokens} (the target's context)"
            )
        found[length] = None
    return tuple(found)
