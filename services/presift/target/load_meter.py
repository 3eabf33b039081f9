"""Reads an engine's load at most once a second, and never fails a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from presift.core.generation import EngineLoad
from presift.target.engine import Engine

EVERY_S = 1.0

log = logging.getLogger(__name__)


class LoadMeter:
    """Caches the load of an engine. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_at: float | None = None
        self._load: EngineLoad | None = None
        self._has_warned = False

    def read(self, engine: Engine) -> EngineLoad | None:
        """The load, at most EVERY_S seconds old; None if unknown."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= EVERY_S:
            self._read_at, self._load = now, self._fetch(engine)
        return self._load

    def _fetch(self, engine: Engine) -> EngineLoad | None:
        try:
            return engine.load()
        except Exception:  # the load only helps routing; a request must not fail because of it
            if not self._has_warned:
                log.warning("the engine's load cannot be read", exc_info=True)
            self._has_warned = True
            return None
