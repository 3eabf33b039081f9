"""From flags to a plan: models and devices become speeds, the load what it needs with presift and without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from presift.cli.planning import route_table
from presift.cli.planning.devices import Device, Said, device_of, speeds_of
from presift.cli.planning.report import Plan
from presift.cli.planning.shapes import Shape, shape_of
from presift.cli.planning.sizing import Limits, Sizes, sizes
from presift.cli.planning.workload import Demand, Wish, Workload, demands
from presift.core.errors import InvalidRequest, PresiftError
from presift.core.plan import Route
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.routing.cost_model import StageCosts

_CPU_POOL_TOKENS = 65_536  # what a target takes on a CPU by itself


@dataclass(frozen=True, slots=True)
class Asked:
    """All that a plan rests on but learnt speeds. `kv_pool_tokens` None: what fits the target's device."""

    workload: Workload
    draft: tuple[Shape, Device]
    target: tuple[Shape, Device]
    said: Said
    wish: Wish
    utilisation: float
    max_running: int
    kv_pool_tokens: int | None = None


def model(field: str, name: str, device: str, home: Path) -> tuple[Shape, Device]:
    """A shape and where it runs; a catalogue name is its folder, if it was made. Raises InvalidRequest."""
    made = home / "models" / name
    return shape_of(field, str(made) if made.is_dir() else name), device_of("device", device)


def wish(
    route: str,
    context_tokens: int,
    max_prompt_tokens: int | None,
    max_kv_tokens: int | None,
    compress_above: int | None,
) -> Wish:
    """Raises InvalidRequest."""
    budget = route_table.Budget(
        max_prompt_tokens=max_prompt_tokens, max_kv_tokens=max_kv_tokens, compress_above_tokens=compress_above
    )
    return Wish(route_of(route), budget, context_tokens)


def route_of(name: str) -> Route | None:
    """None for "auto". Raises InvalidRequest."""
    if name == "auto":
        return None
    try:
        return Route(name)
    except ValueError:
        raise InvalidRequest("route", name, f"auto, {', '.join(Route)}") from None


def plan(asked: Asked, learnt: StageCosts | None = None) -> Plan:
    """`learnt` speeds take the place of the devices'. Raises PresiftError, naming field, value and limit."""
    (shape, device), load = asked.target, asked.workload
    asked.draft[1].kv_pool_tokens(asked.draft[0])  # it must fit, too
    pool, fits = asked.kv_pool_tokens, device.kv_pool_tokens(shape)
    if pool is None:
        pool = min(fits, _CPU_POOL_TOKENS) if device.name == "cpu" else fits
    limits = Limits(pool, asked.max_running, asked.utilisation)
    speeds = learnt or speeds_of(asked.draft, asked.target, asked.said)
    found = demands(load, asked.wish, speeds, _terms)
    without, why_not = _in_full(asked, speeds, limits)
    needed = sizes(load, found, speeds, limits)
    return Plan(load, limits, shape, speeds, found, needed, without, why_not, _basis(asked, learnt))


def _in_full(asked: Asked, speeds: StageCosts, limits: Limits) -> tuple[Sizes | None, str]:
    """What reading every prompt in full needs, or why that cannot be."""
    try:
        found: tuple[Demand, ...] = demands(asked.workload, replace(asked.wish, route=Route.FULL), speeds, _terms)
        if any(each.route is not Route.FULL for each in found):
            return None, "it does not fit the context"
        return sizes(asked.workload, found, speeds, limits), ""
    except PresiftError as error:
        return None, error.message


def _terms(tokens: int) -> EffectiveDefaults:
    return route_table.terms_for(tokens, None, "", None)


def _basis(asked: Asked, learnt: StageCosts | None) -> tuple[str, ...]:
    if learnt is not None:
        how = "learnt by the orchestrator" if learnt.is_measured else "NOT learnt yet: the demo pair's on two cores"
        return (f"speeds: {how}; memory: by --target and --device",)
    lines = [f"{role}: {shape.name} on {device.name}, {device.basis}" for role, (shape, device) in _pairs(asked)]
    said = {name: getattr(asked.said, name) for name in ("draft_tokens_per_s", "target_tokens_per_s", "decode_step_ms")}
    lines += [f"{name}: {value:g}, as you said" for name, value in said.items() if value is not None]
    return tuple(lines)


def _pairs(asked: Asked) -> tuple[tuple[str, tuple[Shape, Device]], ...]:
    return (("draft", asked.draft), ("target", asked.target))
