"""One circuit breaker per route and length band, by the mean agreement of its last samples. Pure: no clock.

Off below one mean, on again above a higher one: between the two nothing changes. A route that was switched begins a new
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
    """When a route is switched: mean agreements 0..1, counts of samples. `acts` False: only measure.

    Raises InvalidRequest.
    """

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
    """The band of a prompt; bands double in length. `prompt_tokens` >= 1."""
    return LengthBand(1 << (prompt_tokens.bit_length() - 1))


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of a route in a length band: means over the window, None without samples.

    `agreement` is the mean degree of agreement, which switches the route; `overlap` and `fact_share` are its parts, the
    latter of the samples with facts. `since`: when the route was last switched off or on, None if never.
    """

    route: Route
    band: LengthBand
    samples: int
    agreement: float | None
    overlap: float | None
    fact_share: float | None
    exact_share: float | None
    first_divergence: float | None
    is_off: bool
    since: datetime | None


@dataclass(slots=True)
class RouteBreaker:
    """Switches one route off in one length band while its samples are below the thresholds."""

    route: Route
    band: LengthBand
    samples: deque[Agreement]
    is_off: bool = False
    since: datetime | None = None

    @property
    def quality(self) -> Quality:
        """The current quality."""
        diverged = [each.first_divergence for each in self.samples if each.first_divergence is not None]
        return Quality(
            self.route,
            self.band,
            len(self.samples),
            agreement=_mean([each.degree for each in self.samples]),
            overlap=_mean([each.overlap for each in self.samples]),
            fact_share=_mean([each.fact_share for each in self.samples if each.fact_share is not None]),
            exact_share=_mean([float(each.is_exact) for each in self.samples]),
            first_divergence=_mean(diverged),
            is_off=self.is_off,
            since=self.since,
        )

    def add(self, sample: Agreement, thresholds: Thresholds) -> bool:
        """Add a sample; True if the route must now be switched. Without `thresholds.acts` it never must."""
        self.samples.append(sample)
        agreement = self.quality.agreement
        if agreement is None or not thresholds.acts or len(self.samples) < thresholds.least_samples:
            return False
        return agreement > thresholds.on_above if self.is_off else agreement < thresholds.off_below

    def move(self, now: datetime) -> None:
        self.is_off, self.since = not self.is_off, now
        self.samples.clear()


@dataclass(slots=True)
class QualityGate:
    """The breakers of all routes and length bands. A route without samples has no breaker and is on."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    _breakers: dict[tuple[Route, LengthBand], RouteBreaker] = field(default_factory=dict)

    def add(self, route: Route, band: LengthBand, sample: Agreement, now: datetime) -> Quality | None:
        """Count a sample. If it switches the route off or on, return the quality that caused it, with the new `is_off`
        and `since`."""
        breaker = self._breakers.setdefault(
            (route, band), RouteBreaker(route, band, deque(maxlen=self.thresholds.window))
        )
        if not breaker.add(sample, self.thresholds):
            return None
        found = breaker.quality
        breaker.move(now)
        return replace(found, is_off=breaker.is_off, since=now)

    def off(self, prompt_tokens: int) -> dict[Route, str]:
        """The routes that are off for prompts of this length, and why in words."""
        band, below = length_band(prompt_tokens), self.thresholds.off_below
        return {
            breaker.route: f"is switched off for {band} tokens: agreement below {below:g}"
            for breaker in self._breakers.values()
            if breaker.band == band and breaker.is_off
        }

    def qualities(self) -> list[Quality]:
        """The quality of every sampled route and band, sorted."""
        return [self._breakers[key].quality for key in sorted(self._breakers)]


def _mean(values: list[float] | list[int]) -> float | None:
    return sum(values) / len(values) if values else None
