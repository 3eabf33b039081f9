"""From flags to the JSONL file of a suite. Equal flags, packages and target give the same file, which is made once."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from presift.cli.connection import ConnectionFlags, connect_async
from presift.cli.evaluation.arms import Arm
from presift.cli.evaluation.runner import AnswerSettings, check_served
from presift.cli.evaluation.suites import agent_sessions, ruler
from presift.cli.evaluation.suites.flags import SuiteFlags
from presift.cli.evaluation.suites.foreign_python import ForeignPython, Package
from presift.cli.evaluation.suites.suite import Source, Suite, Wanted, lengths_of
from presift.cli.evaluation.suites.token_counter import TokenCounter
from presift.cli.render.console import print_stderr
from presift.cli.settings import CliSettings
from presift_client import Model

SUITES: dict[str, Suite] = {suite.name: suite for suite in (ruler.SUITE, agent_sessions.SUITE)}

_LENGTHS, _PER_TASK = "4k", 20
# The orchestrator's default.
_ANSWER_TOKENS = 256
# Increase it when a suite's lines change.
_FORMAT = 1


def check_flags(file: Path | None, flags: SuiteFlags) -> None:
    """Raise ValueError unless there is either a file or a known suite, and for flags that need a suite."""
    if (file is None) == (flags.suite is None):
        raise ValueError("give either FILE.jsonl or --suite")
    if flags.suite is not None and flags.suite not in SUITES:
        raise ValueError(f"suite is '{flags.suite}'; it must be one of {', '.join(SUITES)}")
    if flags.suite is None:
        for name in ("lengths", "tasks", "per_task", "suite_python"):
            if getattr(flags, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --suite")


async def prepare(
    flags: SuiteFlags,
    connection: ConnectionFlags,
    settings: CliSettings,
    tenant: str | None,
    answers: AnswerSettings,
    *,
    arms: Sequence[Arm],
) -> Path:
    """The file of the suite's prompts, in the folder `suites` of PRESIFT_HOME.

    Raises ValueError for a flag, a route of `arms` that is not served, or a missing package, OSError, and PresiftError
    of the stack, which counts the tokens.
    """
    suite = SUITES[flags.suite or ""]
    python = ForeignPython(flags.suite_python or Path(sys.executable))
    packages = await python.packages(
        suite.name, suite.distributions, suite.without_dependencies, needs_sentences=suite.needs_sentences
    )
    async with connect_async(connection, settings, tenant) as client:
        info = await client.info()
        check_served(arms, info)
        target = info.target
        wanted = Wanted(
            lengths_of(flags.lengths or _LENGTHS, suite, target.context_tokens),
            tuple(word.strip() for word in flags.tasks.split(",")) if flags.tasks else (),
            flags.per_task or _PER_TASK,
            answers.seed,
            answers.max_new_tokens or _ANSWER_TOKENS,
        )
        path = settings.home / "suites" / f"{suite.name}-{_digest(suite, wanted, packages, target)}.jsonl"
        if not path.exists():
            await _write(path, suite, wanted, Source(python, packages, TokenCounter(client, answers.deadline_s)))
    print_stderr(f"suite {suite.name}: prompts are in {path}")
    return path


async def _write(path: Path, suite: Suite, wanted: Wanted, source: Source) -> None:
    """Write the whole file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lines = [json.dumps(line, ensure_ascii=False) async for line in suite.lines(wanted, source)]
    except (LookupError, TypeError, FileNotFoundError) as error:
        # Packages change their files between versions.
        versions = ", ".join(f"{name} {package.version}" for name, package in source.packages.items())
        raise ValueError(
            f"suite {suite.name} cannot read what is installed ({versions}); tests/bench/suites.lock has the versions "
            f"that it was tested with: {error!r}"
        ) from error
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    unfinished.replace(path)


def _digest(suite: Suite, wanted: Wanted, packages: Mapping[str, Package], target: Model) -> str:
    """Of all that the prompts depend on: 12 hex digits."""
    values = {
        "format": _FORMAT,
        "suite": suite.name,
        "lengths": wanted.lengths,
        "tasks": wanted.tasks,
        "per_task": wanted.per_task,
        "seed": wanted.seed,
        "answer_tokens": wanted.answer_tokens,
        "packages": {name: package.version for name, package in packages.items()},
        "target": [target.id, target.revision, target.tokenizer_fingerprint],
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
