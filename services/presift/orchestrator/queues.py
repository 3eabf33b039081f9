"""Queues: what of our own is under way at a service, in predicted milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Turn:
    """One piece of work; `was_alone` as long as nothing else was under way at any time of it."""

    predicted_ms: float
    was_alone: bool = True
    is_done: bool = False


class Queue:
    """Work that is under way; it is taken to be done in order."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def wait_ms(self) -> float:
        """The work before whoever comes now; the first is half done, on the average."""
        return sum(turn.predicted_ms for turn in self._turns) - sum(turn.predicted_ms / 2 for turn in self._turns[:1])

    @contextmanager
    def working(self, predicted_ms: float) -> Iterator[Turn]:
        """A piece of work, until the block ends or `done` was called."""
        turn = Turn(predicted_ms, was_alone=not self._turns)
        for other in self._turns:
            other.was_alone = False
        self._turns.append(turn)
        try:
            yield turn
        finally:
            self.done(turn)

    def done(self, turn: Turn) -> None:
        """This work is done; a second time says nothing."""
        if not turn.is_done:
            turn.is_done = True
            self._turns = [each for each in self._turns if each is not turn]
