"""Target loads: the latest reports of the targets, and this orchestrator's running answers.

A report is some seconds old when it is used. It is dropped soon after, because an old report makes predictions worse.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from presift.core.generation import EngineLoad
from presift.orchestrator.routing.cost_model import RunningAnswer

MAX_AGE_S = 5.0
_KEPT_TIMES = 16


class TargetLoads:
    """Loads by location. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[str, tuple[float, EngineLoad]] = {}
        self._prefill_ms: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._answers: list[tuple[str, RunningAnswer]] = []

    def answers(self, replica: str = "") -> tuple[RunningAnswer, ...]:
        """This orchestrator's running answers at a replica, or at all; on average each is half done."""
        return tuple(answer for at, answer in self._answers if at == replica or not replica)

    @contextmanager
    def answering(self, predicted_ms: float, kv_tokens: int, replica: str = "") -> Iterator[None]:
        """Count an answer until the block ends: its predicted decoding time and its KV slots."""
        answer = replica, RunningAnswer(predicted_ms / 2, kv_tokens)
        self._answers.append(answer)
        try:
            yield
        finally:
            self._answers.remove(answer)

    def record(self, location: str, load: EngineLoad | None, prefill_ms: float | None) -> None:
        """Record the load that came with an answer, and the time of its prefill; None if the request had to wait."""
        if prefill_ms is not None:
            self._prefill_ms.append(prefill_ms)
        now = self._clock()
        self._reports = {key: report for key, report in self._reports.items() if now - report[0] <= MAX_AGE_S}
        if load is not None:
            self._reports[location] = now, load

    def free_kv_tokens(self, location: str) -> int | None:
        """None if there is no recent report."""
        load = self._latest(location)
        return None if load is None else load.free_kv_tokens

    def other_wait_ms(self, location: str, own: int) -> float:
        """Predicted time of the requests that wait there for other orchestrators; `own` requests are this one's.

        Each counts with the median time of this orchestrator's own requests.
        """
        load = self._latest(location)
        if load is None or not self._prefill_ms:
            return 0.0
        return max(0, load.waiting - own) * median(self._prefill_ms)

    def _latest(self, location: str) -> EngineLoad | None:
        reported_at, load = self._reports.get(location, (0.0, None))
        return load if load is not None and self._clock() - reported_at <= MAX_AGE_S else None
