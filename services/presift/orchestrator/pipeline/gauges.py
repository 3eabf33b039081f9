"""The orchestrator's gauges: its load, its replicas, the routes that are switched off. Read at each collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from presift.cache.build_lock import BuildLock
from presift.orchestrator.admission.admission import Admission
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.pipeline.parts import Parts
from presift.orchestrator.quality.guard import QualityGuard
from presift.telemetry.gauges import Gauge, Reading, gauge, gauges


def gauges_of(parts: Parts, lock: BuildLock) -> tuple[Gauge, ...]:
    """All gauges of the orchestrator."""
    return (
        *_of_admission(parts.admission),
        gauge("presift.answers.unread.bytes", lambda: parts.answer_bytes.held),
        gauge("presift.leases.held", lambda: lock.held, of="draft"),
        gauge("presift.leases.held", lambda: parts.quotas.running, of="tenant"),
        gauges("presift.guard.off", lambda: _routes_off(parts.guard)),
        gauges("presift.replicas", lambda: _replicas(parts.models)),
    )


def _of_admission(admission: Admission) -> tuple[Gauge, ...]:
    return (
        gauge("presift.admission.running", lambda: admission.running),
        gauge("presift.admission.waiting", lambda: admission.waiting),
        gauge("presift.admission.waiting.bytes", lambda: admission.waiting_bytes),
        gauge("presift.admission.waiting.tenants", lambda: admission.waiting_tenants),
    )


def _routes_off(guard: QualityGuard) -> Iterable[Reading]:
    for each in guard.qualities():
        yield float(each.is_off), {"route": each.route.value, "band": str(each.band)}


def _replicas(models: ModelRegistry) -> Iterable[Reading]:
    """Zero for a DNS name without an address."""
    found = Counter({(role, state): 0 for role in ("draft", "target") for state in ("usable", "unusable")})
    found.update((each.role, "usable" if each.is_usable else "unusable") for each in models.statuses())
    for (role, state), number in found.items():
        yield float(number), {"role": role, "state": state}
