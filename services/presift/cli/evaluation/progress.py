"""How many answers are there: a bar on a terminal, otherwise a line at each tenth. On stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from presift.cli.render.console import print_stderr


class AnswerProgress:
    """Counts answers up to `total`, in a `with` block."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        # Not as rich decides it: FORCE_COLOR would put control codes into logs.
        console = Console(file=sys.stderr, force_terminal=sys.stderr.isatty())
        columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("answers", total=total)
        self._is_terminal = console.is_terminal

    def advance(self) -> None:
        """One more."""
        self._done += 1
        self._bar.advance(self._task)
        is_tenth = self._done * 10 // self._total > (self._done - 1) * 10 // self._total
        if not self._is_terminal and is_tenth:
            print_stderr(f"{self._done} of {self._total} answers")

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            self._bar.stop()
