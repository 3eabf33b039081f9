"""Switches: one per route and length band, moved by the mean agreement of its last samples. The caller has the clock.

Off below one mean, on again above a higher one: between the two nothing changes. A switch that moved begins a new
window, so that the samples of before do not move it back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.orchestrator.routing.agreement import Agreement


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a switch moves: mean overlaps 0..1, counts of samples. `acts` False only measures. Raises InvalidRequest."""

    off_below: float = 0.45
    on_above: float = 0.65
    least_samples: int = 20
    window: int = 50
    acts: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.off_below <= self.on_above < 1.0:
            limit = f"0 <= guard_off_below <= guard_on_above ({self.on_above:g}) < 1"
            raise InvalidRequest("guard_off_below", self.off_below, limit)
        if not 1 <= self.least_samples <= self.window:
            raise InvalidRequest("guard_least_samples", self.least_samples, f"1..{self.window} (guard_window)")


@dataclass(frozen=True, slots=True, order=True)
class LengthBand:
    """Prompts from one power of two tokens up to the next."""

    least_tokens: int

    @property
    def most_tokens(self) -> int:
        return 2 * self.least_tokens - 1

    def __str__(self) -> str:
        return f"{self.least_tokens}-{self.most_tokens}"


def length_band(prompt_tokens: int) -> LengthBand:
    """Its band; there are as many as the context has bits. `prompt_tokens` >= 1."""
    return LengthBand(1 << (prompt_tokens.bit_length() - 1))


@dataclass(frozen=True, slots=True)
class Quality:
    """How a route does in a length band: means over the window, None while there is nothing to take them of.

    `since`: when the switch moved last, None if it never did.
    """

    route: Route
    band: LengthBand
    samples: int
    overlap: float | None
    exact_share: float | None
    first_divergence: float | None
    is_off: bool
    since: datetime | None


@dataclass(slots=True)
class RouteBreaker:
    """On until its samples are bad."""

    route: Route
    band: LengthBand
    samples: deque[Agreement]
    is_off: bool = False
    since: datetime | None = None

    @property
    def quality(self) -> Quality:
        """As it is now."""
        overlap = _mean([each.overlap for each in self.samples])
        exact_share = _mean([float(each.is_exact) for each in self.samples])
        diverged = _mean([each.first_divergence for each in self.samples if each.first_divergence is not None])
        return Quality(
            self.route, self.band, len(self.samples), overlap, exact_share, diverged, self.is_off, self.since
        )

    def add(self, sample: Agreement, thresholds: Thresholds) -> bool:
        """Whether it must move now."""
        self.samples.append(sample)
        overlap = self.quality.overlap
        if overlap is None or not thresholds.acts or len(self.samples) < thresholds.least_samples:
            return False
        return overlap > thresholds.on_above if self.is_off else overlap < thresholds.off_below

    def move(self, now: datetime) -> None:
        self.is_off, self.since = not self.is_off, now
        self.samples.clear()


@dataclass(slots=True)
class QualityGate:
    """All that there are; a route that was never sampled has none, and is on."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    _switches: dict[tuple[Route, LengthBand], RouteBreaker] = field(default_factory=dict)

    def add(self, route: Route, band: LengthBand, sample: Agreement, now: datetime) -> Quality | None:
        """Count a sample; where that moved the switch: the quality that did it, with `is_off` and `since` as they are
        from now on."""
        switch = self._switches.setdefault(
            (route, band), RouteBreaker(route, band, deque(maxlen=self.thresholds.window))
        )
        if not switch.add(sample, self.thresholds):
            return None
        found = switch.quality
        switch.move(now)
        return replace(found, is_off=switch.is_off, since=now)

    def off(self, prompt_tokens: int) -> dict[Route, str]:
        """The routes that are off for prompts of this length, and why in words."""
        band, below = length_band(prompt_tokens), self.thresholds.off_below
        return {
            switch.route: f"is switched off for {band} prompt tokens: its answers agreed with full's below {below:g}"
            for switch in self._switches.values()
            if switch.band == band and switch.is_off
        }

    def qualities(self) -> list[Quality]:
        """Of every route and band that was sampled, in order."""
        return [self._switches[key].quality for key in sorted(self._switches)]


def _mean(values: list[float] | list[int]) -> float | None:
    return sum(values) / len(values) if values else None
