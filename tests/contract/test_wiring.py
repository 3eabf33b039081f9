"""The composition root is shared: a fault planted in `wire` shows in what the orchestrator does.

For each fault, `check` holds on the sound wiring and fails on the planted one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from presift.cache.build_lock import NoBuildLock
from presift.orchestrator import app
from presift.orchestrator.admission.admission import Admission, QueueLimits
from presift.orchestrator.admission.quotas import Quotas
from presift.orchestrator.estimation.calibration import Calibration
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.pipeline.parts import Parts
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.conversations import SelectionStore
from presift.orchestrator.planning.draft_stage import DraftStage
from presift.orchestrator.planning.request_context import PromptReader
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.routing.quality_gate import QualityGate, Thresholds
from presift.v1 import plan_pb2

from .fakes.services import hangs
from .fakes.stack import ALL_ROUTES

LONG = list(range(1, 201))
KV = plan_pb2.ROUTE_SPEC_KV


async def prefills(stack):
    await stack.ask(LONG, route=KV)
    assert stack.target.prefills


async def continues(stack):
    first = await stack.ask(LONG, route=KV)
    later = await stack.ask([*LONG, 5], route=KV, kv={"continue_prompt_tokens": first.decision.prompt_tokens})
    assert later.decision.continued


async def switches_off(stack):
    """Every compressed answer is wrong, so that the guard switches the route off."""
    stack.target.answer = lambda request: [7] * 100 if request.HasField("kv_plan") else request.token_ids[::-1]
    for first in range(3):
        await stack.ask([first + 900, *LONG], route=KV)
        await stack.settle(lambda first=first: [each.samples for each in stack.guard.qualities()] in ([first + 1], [0]))
    assert (await stack.ask(LONG, route=KV)).reason == "ROUTE_SWITCHED_OFF"


async def holds_quota(stack):
    running = []
    stack.target.answer = lambda request: running.append(stack.options.quotas.held_calls) or request.token_ids
    await stack.ask(LONG)
    assert running == [1]


async def claims_lock(stack):
    before = stack.options.lease.claims
    await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_PC)
    assert stack.options.lease.claims == before + 1


async def limits(stack):
    stack.target.pause_after = 1
    first = asyncio.create_task(stack.ask(LONG))
    await stack.settle(lambda: stack.target.running == 1)
    second = asyncio.create_task(stack.ask(LONG))
    await asyncio.wait([second], timeout=1)
    stack.target.gate.set()
    await first
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
        await second


async def stops_calibration(stack):
    stack.draft.faults.append(hangs)
    stack.calibration.start()
    await stack.settle(lambda: stack.draft.calls)
    await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
    assert stack.calibration._task.cancelling()


async def learns(stack):
    await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
    again = await stack.ask(LONG, route=plan_pb2.ROUTE_FULL)
    assert again.decision.predicted_ttft_ms < 30


class CountingQuotas(Quotas):
    """Counts the calls that it holds; the tenants of this stack have no limits."""

    held_calls = 0

    def held(self, *arguments):
        self.held_calls += 1
        return super().held(*arguments)


class CountingLock(NoBuildLock):
    """Counts the claims."""

    claims = 0

    async def claim(self, digest):
        self.claims += 1
        return await super().claim(digest)


@dataclass(frozen=True)
class Fault:
    """`plant` takes the part's place in app.py."""

    part: str
    plant: Callable
    check: Callable
    options: dict = field(default_factory=dict)


def other_parts(**changes):
    return lambda **parts: replace(Parts(**parts), **{name: make() for name, make in changes.items()})


def other_calibration(**parts):
    made = Parts(**parts)
    unused = Calibration(None, made.target, made.models, None, made.estimator, limit_s=1.0)
    return replace(made, calibration=unused)


FAULTS = {
    "the draft stage has no prefiller": Fault(
        "DraftStage", lambda models, compressor, _: DraftStage(models, compressor), prefills
    ),
    "selections are not kept": Fault("SelectionStore", lambda _: SelectionStore(0), continues),
    "reader and guard have different gates": Fault(
        "PromptReader",
        lambda *parts, gate, **named: PromptReader(*parts, gate=QualityGate(Thresholds()), **named),
        switches_off,
        {"sampler": Sampler(1.0), "thresholds": Thresholds(least_samples=3, window=6)},
    ),
    "quotas are not those of the edges": Fault("Parts", other_parts(quotas=Quotas), holds_quota),
    "the compressor has no build lock": Fault(
        "Compressor",
        lambda draft, store, _, **named: Compressor(draft, store, NoBuildLock(), **named),
        claims_lock,
        {"lease": CountingLock()},
    ),
    "queue limits are lost": Fault(
        "Admission",
        lambda _: Admission(QueueLimits()),
        limits,
        {"limits": QueueLimits(max_running=1, max_waiting=0)},
    ),
    "another calibration is stopped": Fault("Parts", other_calibration, stops_calibration),
    "what is learned is not what is used": Fault("Parts", other_parts(estimator=CostEstimator), learns),
}


@pytest.fixture(params=FAULTS, ids=lambda name: name.replace(" ", "-"))
def fault(request):
    return FAULTS[request.param]


@pytest.fixture
def opened(open_stack, fault):
    async def opened():
        named = {"routes": ALL_ROUTES, "quotas": CountingQuotas(), "estimator": CostEstimator(prefills=True)}
        return await open_stack(**named | fault.options)

    return opened


async def test_the_sound_wiring_passes(opened, fault):
    await fault.check(await opened())


async def test_a_planted_fault_is_caught(opened, fault, monkeypatch):
    monkeypatch.setattr(app, fault.part, fault.plant)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await fault.check(await opened())
