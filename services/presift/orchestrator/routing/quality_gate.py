"""Circuit breakers per route and length band, by the mean agreement of the last samples. Pure: no clock.

Off below one mean, on again above a higher one: between the two nothing changes. A route that was switched begins a new
window, so that the samples of before do not move it back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from cachetools import LRUCache

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.orchestrator.routing.agreement import Agreement

# A tenant gives at most one of so many shares of the samples that switch a route for all.
_SHARES = 4
# Breakers of single tenants: those used last. One takes up to 16 KiB.
MAX_OWN = 1024


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
    `is_of_tenant`: of one tenant's samples, which switch the route for that tenant alone.
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
    is_of_tenant: bool = False


@dataclass(slots=True)
class RouteBreaker:
    """Switches one route off in one length band while its samples, each with its tenant, are below the thresholds."""

    route: Route
    band: LengthBand
    samples: list[tuple[str, Agreement]] = field(default_factory=list)
    is_off: bool = False
    since: datetime | None = None

    @property
    def quality(self) -> Quality:
        """The current quality."""
        samples = [each for _, each in self.samples]
        diverged = [each.first_divergence for each in samples if each.first_divergence is not None]
        return Quality(
            self.route,
            self.band,
            len(samples),
            agreement=_mean([each.degree for each in samples]),
            overlap=_mean([each.overlap for each in samples]),
            fact_share=_mean([each.fact_share for each in samples if each.fact_share is not None]),
            exact_share=_mean([float(each.is_exact) for each in samples]),
            first_divergence=_mean(diverged),
            is_off=self.is_off,
            since=self.since,
        )

    def add(self, sample: Agreement, tenant: str, thresholds: Thresholds, *, most_of_tenant: int) -> bool:
        """Add a sample; True if the route must now be switched. Without `thresholds.acts` it never must.

        A tenant has at most `most_of_tenant` samples, the latest.
        """
        own = [index for index, (other, _) in enumerate(self.samples) if other == tenant]
        if len(own) >= most_of_tenant:
            del self.samples[own[0]]
        self.samples = [*self.samples, (tenant, sample)][-thresholds.window :]
        agreement = self.quality.agreement
        if agreement is None or not thresholds.acts or len(self.samples) < thresholds.least_samples:
            return False
        return agreement > thresholds.on_above if self.is_off else agreement < thresholds.off_below

    def move(self, now: datetime) -> None:
        self.is_off, self.since = not self.is_off, now
        self.samples.clear()


class QualityGate:
    """The breakers of all routes and length bands. A route without samples has no breaker and is on.

    Each tenant has breakers of its own, over its samples alone. The others are over those of all tenants, each with at
    most a quarter: so no tenant alone can switch a route off for the others. Tenants are told apart by their salts;
    callers without authentication are one tenant.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self._thresholds = Thresholds() if thresholds is None else thresholds
        self._share = max(1, self._thresholds.least_samples // _SHARES)
        least = max(self._thresholds.least_samples, _SHARES * self._share)
        # A window too small for the shares of enough tenants leaves all to the tenants' own breakers.
        acts = self._thresholds.acts and least <= self._thresholds.window
        self._of_all = replace(self._thresholds, least_samples=min(least, self._thresholds.window), acts=acts)
        self._shared: dict[tuple[Route, LengthBand], RouteBreaker] = {}
        self._own: LRUCache[tuple[str, Route, LengthBand], RouteBreaker] = LRUCache(MAX_OWN)

    def add(
        self, route: Route, band: LengthBand, sample: Agreement, now: datetime, *, tenant: str = ""
    ) -> Quality | None:
        """Count a sample. If it switches the route off or on, for its tenant or for all, return the quality that caused
        it, with the new `is_off` and `since`."""
        own = self._own.setdefault((tenant, route, band), RouteBreaker(route, band))
        shared = self._shared.setdefault((route, band), RouteBreaker(route, band))
        switched = None
        if own.add(sample, tenant, self._thresholds, most_of_tenant=self._thresholds.window):
            switched = _moved(own, now, is_of_tenant=True)
        if shared.add(sample, tenant, self._of_all, most_of_tenant=self._share):
            switched = _moved(shared, now, is_of_tenant=False)
        return switched

    def off(self, prompt_tokens: int, tenant: str = "") -> dict[Route, str]:
        """The routes that are off for a tenant's prompts of this length, and why in words."""
        band, below = length_band(prompt_tokens), self._thresholds.off_below
        reason = f"is switched off for {band} tokens: agreement below {below:g}"
        found = (
            each for route in Route for each in (self._own.get((tenant, route, band)), self._shared.get((route, band)))
        )
        return {each.route: reason for each in found if each is not None and each.is_off}

    def qualities(self) -> list[Quality]:
        """The quality of every sampled route and band, sorted: over the samples of all tenants' own breakers. A route
        is off if it is for any tenant."""
        return [self._quality(*key) for key in sorted(self._shared)]

    def _quality(self, route: Route, band: LengthBand) -> Quality:
        own = [each for each in self._own.values() if (each.route, each.band) == (route, band)]
        switches = [*own, self._shared[route, band]]
        since = max((each.since for each in switches if each.since is not None), default=None)
        samples = [sample for each in own for sample in each.samples]
        return RouteBreaker(route, band, samples, any(each.is_off for each in switches), since).quality


def _moved(breaker: RouteBreaker, now: datetime, *, is_of_tenant: bool) -> Quality:
    """Switch it. Returns the quality that caused it."""
    found = breaker.quality
    breaker.move(now)
    return replace(found, is_off=breaker.is_off, since=now, is_of_tenant=is_of_tenant)


def _mean(values: list[float] | list[int]) -> float | None:
    return sum(values) / len(values) if values else None
