"""The load of an engine, as the service tells it: seen at most once a second, and never in an answer's way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from presift.core.generation import EngineLoad
from presift.target.engine import Engine

EVERY_S = 1.0

log = logging.getLogger(__name__)


class LoadMeter:
    """`clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_at: float | None = None
        self._load: EngineLoad | None = None
        self._has_warned = False

    def of(self, engine: Engine) -> EngineLoad | None:
        """What was seen last, at most EVERY_S seconds old; None where the engine does not say."""
        now = self._clock()
        if self._seen_at is None or now - self._seen_at >= EVERY_S:
            self._seen_at, self._load = now, self._see(engine)
        return self._load

    def _see(self, engine: Engine) -> EngineLoad | None:
        try:
            return engine.load()
        except Exception:  # it is a help to whoever routes; the answer is complete without it
            if not self._has_warned:
                log.warning("the engine's load is not known", exc_info=True)
            self._has_warned = True
            return None
