"""Queues: what of our own is under way at a service, in predicted milliseconds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class WorkItem:
    """One piece of work; `was_alone` as long as nothing else was under way at any time of it. `of` names what several
    wait for together."""

    predicted_ms: float
    of: Hashable = None
    was_alone: bool = True
    is_done: bool = False


class PendingWork:
    """Work that is under way; it is taken to be done in order. What has a name is done once, whoever waits for it."""

    def __init__(self) -> None:
        self._turns: list[WorkItem] = []

    def __len__(self) -> int:
        return len(self._works_ms)

    @property
    def wait_ms(self) -> float:
        """The work before whoever comes now; the first is half done, on the average."""
        works_ms = self._works_ms
        return sum(works_ms) - sum(works_ms[:1]) / 2

    @property
    def _works_ms(self) -> list[float]:
        works: dict[Hashable, float] = {}
        for turn in self._turns:
            works.setdefault(id(turn) if turn.of is None else (turn.of,), turn.predicted_ms)
        return list(works.values())

    @contextmanager
    def working(self, predicted_ms: float, of: Hashable = None) -> Iterator[WorkItem]:
        """A piece of work without its wait, until the block ends or `done` was called."""
        turn = WorkItem(predicted_ms, of, was_alone=not self._turns)
        for other in self._turns:
            other.was_alone = False
        self._turns.append(turn)
        try:
            yield turn
        finally:
            self.done(turn)

    def done(self, turn: WorkItem) -> None:
        """This work is done; a second time says nothing."""
        if not turn.is_done:
            turn.is_done = True
            self._turns = [each for each in self._turns if each is not turn]
