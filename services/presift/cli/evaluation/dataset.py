"""The prompts of a JSONL file, and what is expected of their answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

from presift.cli.evaluation.scorers import SCORERS
from presift_client import InvalidRequest
from presift_client.requests import Options, generate_request

KEYS = ("id", "kind", "prompt", "messages", "expected", "choices", "scorer", "max_new_tokens")
# Characters of a faulty value that an error shows.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, as options of the client: a text `prompt` or `messages`. `scorer` is None if nothing is expected.

    `kind` groups prompts, "" is none. `max_new_tokens` limits this answer; None leaves it to the evaluation.
    """

    id: str
    prompt: Mapping[str, Any]
    expected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    scorer: str | None = None
    kind: str = ""
    max_new_tokens: int | None = None

    @property
    def digest(self) -> str:
        """Equal for equal prompts whose answers have the same limit: 32 hex digits."""
        limit = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        text = json.dumps({**self.prompt, **limit}, ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def score(self, answer: str) -> float | None:
        """0..1; None if nothing is expected."""
        return None if self.scorer is None else SCORERS[self.scorer](answer, self.expected, self.choices)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of a file, in its order: one for each prompt. `repeated` counts the lines that were left out because
    they repeat another one's prompt, `ignored` are keys of lines that have no meaning here."""

    examples: tuple[Example, ...]
    ignored: tuple[str, ...]
    repeated: int


def read_dataset(path: Path, limit: int | None = None) -> Dataset:
    """The examples of the first `limit` lines of a file that are not empty.

    Raises ValueError, naming line, field and value, for a faulty line or an empty file, and OSError.
    """
    examples: dict[str, Example] = {}
    # By digest, with the number of the line.
    prompts: dict[str, tuple[int, Example]] = {}
    ignored: dict[str, None] = {}
    repeated = 0
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, raw in islice(lines, limit):
            line = _Line(f"{path}, line {number}", raw)
            example = line.example(str(number))
            ignored |= dict.fromkeys(key for key in line.values if key not in KEYS)
            if example.digest in prompts:
                line.check_repeats(example, *prompts[example.digest])
                repeated += 1
                continue
            if example.id in examples:
                line.fail("id", example.id, "different from those of the lines before")
            examples[example.id] = example
            prompts[example.digest] = number, example
    if not examples:
        raise ValueError(f"{path} has no prompts; it must have one JSON object a line")
    return Dataset(tuple(examples.values()), tuple(ignored), repeated)


class _Line:
    """A line and its place, which every error names."""

    def __init__(self, place: str, raw: bytes) -> None:
        self._place = place
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is not JSON ({error})") from None
        if not isinstance(values, dict):
            self.fail("the line", values, "a JSON object")
        self.values: dict[str, Any] = values

    def fail(self, field: str, value: object, limit: str) -> NoReturn:
        shown = "missing" if value is None else json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise ValueError(f"{self._place}: {field} is {shown}; it must be {limit}")

    def example(self, default_id: str) -> Example:
        expected, choices = self._texts("expected"), self._texts("choices")
        scorer = self._scorer(expected, choices)
        return Example(self._id(default_id), self._prompt(), expected, choices, scorer, self._kind(), self._limit())

    def check_repeats(self, example: Example, number: int, other: Example) -> None:
        """Raise ValueError unless `example`, of this line, expects the same as `other`, of line `number`, which has the
        same prompt."""
        for name in ("expected", "choices", "scorer", "kind"):
            value, known = getattr(example, name), getattr(other, name)
            if value != known:
                shown = json.dumps(known, ensure_ascii=False)
                self.fail(name, value, f"{shown} as in line {number}, which has the same prompt")

    def _id(self, default: str) -> str:
        value = self.values.get("id", default)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            self.fail("id", value, "a string that is not empty, or a number")
        return str(value)

    def _kind(self) -> str:
        value = self.values.get("kind", "")
        if not isinstance(value, str):
            self.fail("kind", value, "a string")
        return value

    def _limit(self) -> int | None:
        value = self.values.get("max_new_tokens")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            self.fail("max_new_tokens", value, "a number of tokens, 1 or more")
        return value

    def _prompt(self) -> dict[str, Any]:
        given = [name for name in ("prompt", "messages") if self.values.get(name) is not None]
        if len(given) != 1:
            raise ValueError(f"{self._place} has {' and '.join(given) or 'no prompt'}; give either prompt or messages")
        (name,) = given
        value = self.values[name]
        if name == "prompt":
            if not isinstance(value, str) or not value:
                self.fail(name, value, "a string that is not empty")
        elif not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
            self.fail(name, value, "a list of objects with role and content")
        try:
            generate_request(self.values.get("prompt"), cast(Options, {} if name == "prompt" else {name: value}))
        except (ValueError, InvalidRequest) as error:
            raise ValueError(f"{self._place}: {error}") from None
        except (TypeError, AttributeError):
            self.fail(name, value, "a list of objects whose role and text are strings")
        return {name: value}

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name)
        texts = [] if value is None else value if isinstance(value, list) else [value]
        if value == [] or not all(isinstance(text, str) and text.strip() for text in texts):
            self.fail(name, value, "a string or a list of strings, none of them empty")
        return tuple(texts)

    def _scorer(self, expected: tuple[str, ...], choices: tuple[str, ...]) -> str | None:
        value = self.values.get("scorer")
        if value is not None and value not in tuple(SCORERS):
            self.fail("scorer", value, f"one of {', '.join(SCORERS)}")
        if value is not None and not expected:
            self.fail("expected", None, f"set where scorer is {value}")
        if choices and (len(expected) != 1 or expected[0] not in choices):
            self.fail("expected", list(expected) or None, f"one of the choices ({', '.join(choices)})")
        if value == "choice" and not choices:
            self.fail("choices", None, "a list of strings where scorer is choice")
        default = "choice" if choices else "contains" if expected else None
        return default if value is None else str(value)
