"""The pending work of one service: this orchestrator's requests there, in predicted milliseconds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class WorkItem:
    """One piece of work. `was_uncontended` stays true as long as nothing else was pending at any time of it. Items with
    equal keys wait for the same work, which counts once."""

    def __init__(self, owner: PendingWork, predicted_ms: float, key: Hashable, *, was_uncontended: bool) -> None:
        self._owner = owner
        self.predicted_ms = predicted_ms
        self.key = key
        self.was_uncontended = was_uncontended

    def done(self) -> None:
        """The work is done. Further calls have no effect."""
        self._owner.remove(self)


class PendingWork:
    """Work that is pending; it is assumed to be done in order."""

    def __init__(self) -> None:
        self._items: list[WorkItem] = []

    def __len__(self) -> int:
        return len(self._works_ms)

    @property
    def wait_ms(self) -> float:
        """The work before a new request; the first piece is half done, on average."""
        works_ms = self._works_ms
        return sum(works_ms) - sum(works_ms[:1]) / 2

    @property
    def _works_ms(self) -> list[float]:
        works: dict[Hashable, float] = {}
        for item in self._items:
            works.setdefault(id(item) if item.key is None else (item.key,), item.predicted_ms)
        return list(works.values())

    @contextmanager
    def working(self, predicted_ms: float, key: Hashable = None) -> Iterator[WorkItem]:
        """A piece of work, without its wait, until the block ends or `done` is called."""
        item = WorkItem(self, predicted_ms, key, was_uncontended=not self._items)
        for other in self._items:
            other.was_uncontended = False
        self._items.append(item)
        try:
            yield item
        finally:
            item.done()

    def remove(self, item: WorkItem) -> None:
        """Remove an item, if it is still pending."""
        self._items = [each for each in self._items if each is not item]
