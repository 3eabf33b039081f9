"""Samples requests, compares their compressed and full answers in the background, and updates the quality gate."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from presift.core.answer import AnswerFormat
from presift.core.generation import Sampling
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
    """`compare` produces the missing answers of a sample and compares. The planner reads the same `gate`."""

    def __init__(self, compare: Compare, sampler: Sampler, gate: QualityGate) -> None:
        self._compare = compare
        self._sampler = sampler
        self._gate = gate
        self.idle_gate = IdleGate()
        self._shadows = ShadowQueue(self.idle_gate, self._work, _count_outcome)

    def offer(self, plan: Plan, sampling: Sampling, answer_format: AnswerFormat | None, answer: Sequence[int]) -> None:
        """Queue a small share of the answers, given as token ids, for comparison."""
        sample = self._sampler.sample(plan, sampling, answer_format, answer)
        if sample is not None:
            self._shadows.offer(sample)

    def qualities(self) -> list[Quality]:
        """The measured quality of every sampled route and length band."""
        return self._gate.qualities()

    async def aclose(self) -> None:
        """Stop comparing immediately."""
        await self._shadows.aclose()

    async def _work(self, sample: Sample) -> None:
        with span("shadow"):
            agreement = await self._compare(sample)
        _record_agreement(sample, agreement)
        switched = self._gate.add(
            sample.route, sample.band, agreement, datetime.now(UTC), tenant=sample.plan.tokens.salt
        )
        if switched is not None:
            _record_switch(switched)


def _record_switch(quality: Quality) -> None:
    to = "off" if quality.is_off else "on"
    count("presift.guard.switched", route=quality.route.value, band=str(quality.band), to=to)
    whom = "one tenant" if quality.is_of_tenant else "all tenants"
    log.warning(
        "route %s is switched %s for %s prompt tokens of %s: mean agreement with full %.3f over %d samples",
        quality.route, to, quality.band, whom, quality.agreement, quality.samples,
    )  # fmt: skip


def _count_outcome(sample: Sample, outcome: ShadowOutcome) -> None:
    count("presift.guard.samples", route=sample.route.value, band=str(sample.band), outcome=outcome.value)


def _record_agreement(sample: Sample, agreement: Agreement) -> None:
    route, band = sample.route.value, str(sample.band)
    record("presift.guard.agreement", agreement.degree, route=route, band=band)
    record("presift.guard.overlap", agreement.overlap, route=route, band=band)
    if agreement.fact_share is not None:
        record("presift.guard.facts", agreement.fact_share, route=route, band=band)
    if agreement.first_divergence is None:
        count("presift.guard.exact", route=route, band=band)
    else:
        record("presift.guard.first_divergence", agreement.first_divergence, route=route, band=band)
