"""From a plan's inputs to the plan: models and devices become speeds, and the load becomes numbers of replicas."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from presift.cli.planning.devices import Device, MeasuredSpeeds, device_of, speeds_of
from presift.cli.planning.report import Plan
from presift.cli.planning.route_table import defaults_for
from presift.cli.planning.shapes import Shape, shape_of
from presift.cli.planning.sizing import Limits, Sizes, sizes
from presift.cli.planning.workload import RequestOptions, Workload, length_work
from presift.core.errors import InvalidRequest, PresiftError
from presift.core.plan import Route
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.routing.cost_model import StageCosts

_CPU_POOL_TOKENS = 65_536  # a target's default on a CPU


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """Everything that a plan rests on, except learned speeds.

    `kv_pool_tokens` None: as many KV tokens as fit the target's device.
    """

    workload: Workload
    draft: tuple[Shape, Device]
    target: tuple[Shape, Device]
    measured: MeasuredSpeeds
    options: RequestOptions
    utilisation: float
    max_running: int
    kv_pool_tokens: int | None = None


def model_on_device(field: str, name: str, device: str, home: Path) -> tuple[Shape, Device]:
    """A model's shape and its device; a demo model is read from its folder if it is there. Raises InvalidRequest."""
    folder = home / "models" / name
    return shape_of(field, str(folder) if folder.is_dir() else name), device_of("device", device)


def route_named(name: str) -> Route | None:
    """The route of that name, None for "auto". Raises InvalidRequest."""
    if name == "auto":
        return None
    try:
        return Route(name)
    except ValueError:
        raise InvalidRequest("route", name, f"one of auto, {', '.join(Route)}") from None


def plan(inputs: PlanInputs, learned: StageCosts | None = None) -> Plan:
    """The replicas that a load needs. `learned` speeds replace those of the devices.

    Raises PresiftError, naming field, value and limit.
    """
    workload = inputs.workload
    draft_shape, draft_device = inputs.draft
    draft_device.kv_pool_tokens(draft_shape)  # raises if the draft does not fit
    limits = Limits(_kv_pool_tokens(inputs), inputs.max_running, inputs.utilisation)
    speeds = learned or speeds_of(inputs.draft, inputs.target, inputs.measured)
    requests = length_work(workload, inputs.options, speeds, _defaults)
    without, why_not = _in_full(inputs, speeds, limits)
    return Plan(
        workload=workload,
        limits=limits,
        target=inputs.target[0],
        speeds=speeds,
        requests=requests,
        with_presift=sizes(workload, requests, speeds, limits),
        without=without,
        why_not=why_not,
        basis=_basis(inputs, learned),
    )


def _kv_pool_tokens(inputs: PlanInputs) -> int:
    shape, device = inputs.target
    fits = device.kv_pool_tokens(shape)
    if inputs.kv_pool_tokens is not None:
        return inputs.kv_pool_tokens
    return min(fits, _CPU_POOL_TOKENS) if device.name == "cpu" else fits


def _in_full(inputs: PlanInputs, speeds: StageCosts, limits: Limits) -> tuple[Sizes | None, str]:
    """What the load needs if every prompt is read in full, or why that is impossible."""
    try:
        requests = length_work(inputs.workload, replace(inputs.options, route=Route.FULL), speeds, _defaults)
        if any(each.route is not Route.FULL for each in requests):
            return None, "it does not fit the context"
        return sizes(inputs.workload, requests, speeds, limits), ""
    except PresiftError as error:
        return None, error.message


def _defaults(tokens: int) -> EffectiveDefaults:
    return defaults_for(tokens, None, "", None)


def _basis(inputs: PlanInputs, learned: StageCosts | None) -> tuple[str, ...]:
    """Where the speeds come from, one line each."""
    if learned is not None:
        source = (
            "learned by the orchestrator"
            if learned.is_observed
            else "NOT learned yet; those of the demo pair on two cores"
        )
        return (f"speeds: {source}; memory: from --target and --device",)
    models = (("draft", inputs.draft), ("target", inputs.target))
    lines = [f"{role}: {shape.name} on {device.name}, {device.basis}" for role, (shape, device) in models]
    given = {name: value for name, value in asdict(inputs.measured).items() if value is not None}
    return tuple(lines + [f"{name}: {value:g}, as given" for name, value in given.items()])
