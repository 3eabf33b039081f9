"""How full the orchestrator is, whom it reaches, which routes are off: read when somebody collects metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from presift.cache.lease import Lease
from presift.orchestrator.access.allowances import Allowances
from presift.orchestrator.admission import Admission
from presift.orchestrator.guard.guard import Guard
from presift.orchestrator.models import Models
from presift.orchestrator.pipeline import Pipeline
from presift.rpc.gauges import Gauge, Reading, gauge, gauges


def gauges_of(pipeline: Pipeline, models: Models, lease: Lease, allowances: Allowances) -> tuple[Gauge, ...]:
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


def _switches(guard: Guard) -> Iterable[Reading]:
    for each in guard.qualities():
        yield float(each.is_off), {"route": each.route.value, "band": str(each.band)}


def _replicas(models: Models) -> Iterable[Reading]:
    """Those of a name that has no address yet are none."""
    found = Counter({(role, state): 0 for role in ("draft", "target") for state in ("usable", "unusable")})
    found.update((each.role, "usable" if each.is_usable else "unusable") for each in models.standings())
    for (role, state), number in found.items():
        yield float(number), {"role": role, "state": state}
