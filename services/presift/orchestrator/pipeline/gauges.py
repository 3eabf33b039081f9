"""How full the orchestrator is, whom it reaches, which routes are off: read when somebody collects metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from presift.cache.build_lock import BuildLock
from presift.orchestrator.admission.admission import Admission
from presift.orchestrator.admission.quotas import Quotas
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.quality.guard import QualityGuard
from presift.telemetry.gauges import Gauge, Reading, gauge, gauges


def gauges_of(pipeline: Pipeline, models: ModelRegistry, lease: BuildLock, allowances: Quotas) -> tuple[Gauge, ...]:
    """All of the orchestrator's."""
    return (
        *_of_admission(pipeline.admission),
        gauge("presift.leases.held", lambda: lease.held, of="draft"),
        gauge("presift.leases.held", lambda: allowances.running, of="tenant"),
        gauges("presift.guard.off", lambda: _switches(pipeline.guard)),
        gauges("presift.replicas", lambda: _replicas(models)),
    )


def _of_admission(admission: Admission) -> tuple[Gauge, ...]:
    return (
        gauge("presift.admission.running", lambda: admission.running),
        gauge("presift.admission.waiting", lambda: admission.waiting),
        gauge("presift.admission.waiting.bytes", lambda: admission.waiting_bytes),
        gauge("presift.admission.waiting.tenants", lambda: admission.waiting_tenants),
    )


def _switches(guard: QualityGuard) -> Iterable[Reading]:
    for each in guard.qualities():
        yield float(each.is_off), {"route": each.route.value, "band": str(each.band)}


def _replicas(models: ModelRegistry) -> Iterable[Reading]:
    """Those of a name that has no address yet are none."""
    found = Counter({(role, state): 0 for role in ("draft", "target") for state in ("usable", "unusable")})
    found.update((each.role, "usable" if each.is_usable else "unusable") for each in models.standings())
    for (role, state), number in found.items():
        yield float(number), {"role": role, "state": state}
