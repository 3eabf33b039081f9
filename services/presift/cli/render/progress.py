"""A line on the terminal while a prompt is read: how much, and about how long it still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from presift_client import Decision

# Seconds without a decision or a first token before anything is shown: short prompts need no progress.
_QUIET_S = 1.0


def progress_text(decision: Decision | None, elapsed_s: float) -> str:
    """`elapsed_s` counts from the request, as the prediction does. Empty while there is nothing worth showing."""
    if elapsed_s < _QUIET_S:
        return ""
    if decision is None:
        return f"reading the prompt, {elapsed_s:.0f} s"
    reads = f"reading {decision.kept_tokens:,} tokens"
    if decision.predicted_ttft_ms is None:
        return f"{reads}, {elapsed_s:.0f} s"
    predicted_s = decision.predicted_ttft_ms / 1000
    if elapsed_s > predicted_s:
        return f"{reads}, {elapsed_s:.0f} s (predicted: {predicted_s:.1f} s)"
    return f"{reads}, about {predicted_s - elapsed_s:.0f} s left"


class ReadingProgress:
    """Shows the line on stderr from entry until `stop`, and removes it then. Nothing is shown unless stderr is a
    terminal."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # Not as rich decides it: FORCE_COLOR would put control codes into logs.
        self._console = console or Console(file=sys.stderr, force_terminal=sys.stderr.isatty())
        self._clock = clock
        self._started_s = clock()
        self._decision: Decision | None = None
        self._live = Live(
            get_renderable=lambda: Text(self._text()),
            console=self._console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def show(self, decision: Decision) -> None:
        """From now on with the decision's numbers."""
        self._decision = decision

    def print(self, line: str) -> None:
        """Print a line above the progress."""
        if self._live.is_started:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Remove the line. Stopping twice is fine."""
        if self._live.is_started:
            self._live.stop()

    def _text(self) -> str:
        return progress_text(self._decision, self._clock() - self._started_s)
