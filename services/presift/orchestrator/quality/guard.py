"""The guard: samples requests, has them answered the other way when it is calm, and moves the switches."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from presift.orchestrator.domain.request import Sampling
from presift.orchestrator.quality.sampler import Sample, Sampler
from presift.orchestrator.quality.shadow_queue import IdleGate, ShadowOutcome, ShadowQueue
from presift.orchestrator.routing.agreement import Agreement
from presift.orchestrator.routing.decision import Plan
from presift.orchestrator.routing.quality_gate import Quality, QualityGate
from presift.telemetry.metrics import count, record
from presift.telemetry.tracing import span

Compare = Callable[[Sample], Awaitable[Agreement]]

log = logging.getLogger(__name__)


class QualityGuard:
    """`compare` answers what a sample lacks; the planner reads the same `switches`. By itself it takes no sample."""

    def __init__(
        self, compare: Compare | None = None, sampler: Sampler | None = None, switches: QualityGate | None = None
    ) -> None:
        self._compare = compare
        self._sampler = Sampler() if sampler is None else sampler
        self._switches = QualityGate() if switches is None else switches
        self.idle_gate = IdleGate()
        self._shadows = ShadowQueue(self.idle_gate, self._work, _count)

    def offer(self, plan: Plan, sampling: Sampling, answer: Sequence[int]) -> None:
        """A caller was answered with these tokens: compare a small share of such answers."""
        sample = None if self._compare is None else self._sampler.sample(plan, sampling, answer)
        if sample is not None:
            self._shadows.offer(sample)

    def qualities(self) -> list[Quality]:
        """What was seen of every route and length band."""
        return self._switches.qualities()

    async def aclose(self) -> None:
        """Stop comparing, at once."""
        await self._shadows.aclose()

    async def _work(self, sample: Sample) -> None:
        assert self._compare is not None  # else there is no sample
        with span("shadow"):
            found = await self._compare(sample)
        _record(sample, found)
        moved = self._switches.add(sample.route, sample.band, found, datetime.now(UTC))
        if moved is not None:
            _tell(moved)


def _tell(moved: Quality) -> None:
    to = "off" if moved.is_off else "on"
    count("presift.guard.switched", route=moved.route.value, band=str(moved.band), to=to)
    log.warning(
        "route %s is switched %s for %s prompt tokens: mean overlap with full %.3f over %d samples",
        moved.route, to, moved.band, moved.overlap, moved.samples,
    )  # fmt: skip


def _count(sample: Sample, outcome: ShadowOutcome) -> None:
    count("presift.guard.samples", route=sample.route.value, band=str(sample.band), outcome=outcome.value)


def _record(sample: Sample, found: Agreement) -> None:
    route, band = sample.route.value, str(sample.band)
    record("presift.guard.overlap", found.overlap, route=route, band=band)
    if found.first_divergence is None:
        count("presift.guard.exact", route=route, band=band)
    else:
        record("presift.guard.first_divergence", found.first_divergence, route=route, band=band)
