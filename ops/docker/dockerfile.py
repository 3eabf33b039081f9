"""What ops/docker/Dockerfile says, as values: stages with their instructions, ARGs filled in. For the script that
builds without docker and for the tests; knows the few instructions that this one file uses, and refuses any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).with_name("Dockerfile")
_KNOWN = {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Step:
    """`words` is what stands behind the name of the instruction."""

    name: str
    words: str


@dataclass(frozen=True, slots=True)
class Stage:
    """`parent` is an image, or the stage that this one goes on from."""

    name: str
    parent: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """`arguments` are the ARGs that stand before the first stage, with their defaults or what was given."""

    arguments: Mapping[str, str]
    stages: Mapping[str, Stage] = field(default_factory=dict)

    def line_of(self, target: str) -> list[Stage]:
        """The stages that `target` goes on from, the first one first, itself last."""
        stage = self.stages[target]
        return [*(self.line_of(stage.parent) if stage.parent in self.stages else []), stage]

    def steps(self, target: str, name: str) -> list[str]:
        """The words of all instructions of that name, inherited ones first."""
        return [step.words for stage in self.line_of(target) for step in stage.steps if step.name == name]

    def last_of(self, target: str, name: str) -> str:
        """The one in force. Raises ValueError where there is none."""
        steps = self.steps(target, name)
        if not steps:
            raise ValueError(f"{target} has no {name}")
        return steps[-1]

    def command(self, target: str, name: str) -> list[str]:
        """Of an ENTRYPOINT or HEALTHCHECK, in JSON as all of ours are. Raises ValueError."""
        found = re.search(r"\[.*\]$", self.last_of(target, name))
        if found is None:
            raise ValueError(f"{target}: {name} is no JSON list")
        return list(json.loads(found[0]))

    def environment(self, target: str) -> dict[str, str]:
        """ENV, inherited ones and all. `$PATH` stays as it is."""
        pairs = [pair for words in self.steps(target, "ENV") for pair in re.findall(r"(\w+)=(\S+)", words)]
        return dict(pairs)


def read(file: Path = FILE, **given: str) -> Dockerfile:
    """`given` are build arguments. Raises ValueError for an instruction that is not known here."""
    arguments: dict[str, str] = {}
    stages: dict[str, list[Step]] = {}
    parents: dict[str, str] = {}
    for step in _steps(file.read_text()):
        if step.name == "FROM":
            parent, _, name = step.words.partition(" AS ")
            parents[name], stages[name] = filled(parent, arguments), []
        elif not stages:
            name, _, default = step.words.partition("=")
            arguments[name] = given.get(name, filled(default, arguments))
        else:
            stages[list(stages)[-1]].append(step)
    return Dockerfile(arguments, {name: Stage(name, parents[name], tuple(steps)) for name, steps in stages.items()})


def filled(text: str, arguments: Mapping[str, str]) -> str:
    """`text` with the variables that are known filled in; others stay."""
    return _VARIABLE.sub(lambda found: arguments.get(found[1] or found[2], found[0]), text)


def _steps(text: str) -> Iterator[Step]:
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, words = line.strip().partition(" ")
        if name not in _KNOWN:
            raise ValueError(f"{name} is not known here: teach ops/docker/dockerfile.py what it does")
        yield Step(name, words.strip())
