"""Loads: what targets last said of how busy they are, and which of our answers are under way there.

What a target says is some seconds old when it is used, and is forgotten soon after: a prediction is better without it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from presift.core.generation import EngineLoad
from presift.orchestrator.routing.cost_model import RunningAnswer

BELIEVED_S = 5.0
_KEPT_TIMES = 16


class TargetLoads:
    """`clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[float, EngineLoad]] = {}
        self._reading_ms: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._answers: list[tuple[str, RunningAnswer]] = []

    @property
    def answers(self) -> tuple[RunningAnswer, ...]:
        """Those of ours that are under way; each is half done, on the average."""
        return tuple(answer for _, answer in self._answers)

    def answers_at(self, replica: str) -> tuple[RunningAnswer, ...]:
        """The same, of those that were sent to this replica."""
        return tuple(answer for at, answer in self._answers if at == replica)

    @contextmanager
    def answering(self, predicted_ms: float, kv_tokens: int, replica: str = "") -> Iterator[None]:
        """An answer, until the block ends: the decoding that was predicted for it, and the KV slots that it holds."""
        answer = replica, RunningAnswer(predicted_ms / 2, kv_tokens)
        self._answers.append(answer)
        try:
            yield
        finally:
            self._answers.remove(answer)

    def record(self, place: str, load: EngineLoad | None, reading_ms: float | None) -> None:
        """What a target said with an answer, and how long that request took to be read, None where it waited too."""
        if reading_ms is not None:
            self._reading_ms.append(reading_ms)
        now = self._clock()
        self._heard = {key: said for key, said in self._heard.items() if now - said[0] <= BELIEVED_S}
        if load is not None:
            self._heard[place] = now, load

    def free_kv_tokens(self, place: str) -> int | None:
        """None where it is not known, or not any more."""
        load = self._latest(place)
        return None if load is None else load.free_kv_tokens

    def others_ms(self, place: str, own: int) -> float:
        """The work of those that wait there and are not ours; each is as long as our requests are, in the median."""
        load = self._latest(place)
        if load is None or not self._reading_ms:
            return 0.0
        return max(0, load.waiting - own) * median(self._reading_ms)

    def _latest(self, place: str) -> EngineLoad | None:
        said_at, load = self._heard.get(place, (0.0, None))
        return load if load is not None and self._clock() - said_at <= BELIEVED_S else None
