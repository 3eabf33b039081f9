"""Defaults of a request by target model, tenant and prompt length. Pure.

Precedence: settings < file < model < tenant. A band overrides the plain keys of its own level. What the caller sets
overrides everything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from presift.core.errors import InvalidRequest
from presift.core.policies import Policy, SpecKv, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, Budget
from presift.orchestrator.routing.adaptive_capacity import is_measured, most_tokens
from presift.orchestrator.routing.choice import Defaults

# Changed settings by name -> the defaults with these changes. Raises InvalidRequest.
BuildDefaults = Callable[[Mapping[str, Any]], Defaults]
_NO_LIMITS = Budget()
_LIMITS = ("max_prompt_tokens", "max_kv_tokens", "max_ttft_ms", "min_coverage")


@dataclass(frozen=True, slots=True)
class EffectiveDefaults:
    """The defaults of one request. `budget` fills in the limits that the caller left unset."""

    defaults: Defaults
    budget: Budget = _NO_LIMITS

    def complete_budget(self, requested: Budget) -> Budget:
        """The caller's budget, with unset limits filled in."""
        if self.budget == _NO_LIMITS:
            return requested
        unset = {name: getattr(self.budget, name) for name in _LIMITS if getattr(requested, name) is None}
        return replace(requested, strict=requested.strict or self.budget.strict, **unset)

    def keeps_more_than(self, policy: Policy, page_tokens: int = 1) -> bool:
        """Whether `policy` keeps fewer tokens (KV in whole pages), or less coverage, than these defaults without a
        budget. The quality guard skips such answers: a caller's own tight budget must not judge a route."""
        defaults, limits, auto = self.defaults, self.budget, self.defaults.auto_capacity
        prompt, kv = policy.prompt_stage, policy.kv_stage
        if prompt is not None:
            default = defaults.spec_pc.capacity if kv is None else defaults.cascade_capacity
            limit = limits.capacity if kv is None else limits.max_prompt_tokens
            if _is_under(prompt, most_tokens(auto, limit, default), auto):
                return True
        if kv is None:
            return False
        kv_auto = auto if prompt is None else None  # with a prompt stage, its bounds are those of the tokens read
        kv_tokens = most_tokens(kv_auto, limits.max_kv_tokens, defaults.spec_kv.capacity + 1) - 1
        return _is_under(kv, kv_tokens // page_tokens * page_tokens, auto)


def _is_under(stage: SpecPc | SpecKv, usual: int, auto: AutoCapacity | None) -> bool:
    if stage.capacity < usual or stage.adaptive is None or is_measured(stage):
        return stage.capacity < usual
    return auto is None or bool(stage.adaptive.coverage < np.float32(auto.coverage))


@dataclass(frozen=True, slots=True)
class Override:
    """Settings and budget fields, by name, that one part of a policy file sets."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)

    def over(self, base: Override) -> Override:
        """Both together; this one wins."""
        return Override({**base.settings, **self.settings}, {**base.budget, **self.budget})


@dataclass(frozen=True, slots=True)
class OverrideBand:
    """Applies to prompts of up to `up_to_tokens`; None: to all prompts longer than the other bands."""

    up_to_tokens: int | None
    changes: Override


def invalid_band(bands: Sequence[OverrideBand]) -> tuple[int, str] | None:
    """The index of the first band with an invalid `up_to_tokens`, and what it must be; None if all are valid."""
    below = 0
    for i, band in enumerate(bands):
        is_last = i == len(bands) - 1
        if is_last != (band.up_to_tokens is None):
            return i, "unset in the last band" if is_last else "set in every band but the last"
        if band.up_to_tokens is not None and band.up_to_tokens <= below:
            return i, f"> {below}" + (" (the previous band)" if i else "")
        below = band.up_to_tokens or below
    return None


@dataclass(frozen=True, slots=True)
class OverrideLevel:
    """Overrides for everyone, one model or one tenant.

    Raises InvalidRequest unless the bands ascend and only the last one is open.
    """

    changes: Override = Override()
    bands: tuple[OverrideBand, ...] = ()

    def __post_init__(self) -> None:
        if found := invalid_band(self.bands):
            i, limit = found
            raise InvalidRequest(f"bands[{i}].up_to_tokens", self.bands[i].up_to_tokens, limit)

    def at(self, prompt_tokens: int) -> Override:
        """What this level sets for a prompt of this length."""
        for band in self.bands:
            if band.up_to_tokens is None or prompt_tokens <= band.up_to_tokens:
                return band.changes.over(self.changes)
        return self.changes


@dataclass(frozen=True, slots=True)
class OverrideRules:
    """The content of a policy file; models by target model id, tenants by name."""

    everyone: OverrideLevel = OverrideLevel()
    models: Mapping[str, OverrideLevel] = field(default_factory=dict)
    tenants: Mapping[str, OverrideLevel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    """One target and tenant: `values[i]` applies up to `borders[i]` tokens, the last value above all borders."""

    borders: tuple[int, ...]
    values: tuple[EffectiveDefaults, ...]


class OverrideTable:
    """Looks up the defaults of a request. Rules are resolved once per target and tenant."""

    def __init__(self, build: BuildDefaults, rules: OverrideRules | None = None) -> None:
        self._build = build
        self._rules = OverrideRules() if rules is None else rules
        self._rows: dict[tuple[str | None, str | None], _Row] = {}

    def lookup(self, prompt_tokens: int, target_id: str, tenant: str | None = None) -> EffectiveDefaults:
        """The defaults for a prompt of this length."""
        row = self._row(target_id, tenant)
        return row.values[bisect_left(row.borders, prompt_tokens)]

    def compress_above_tokens(self, target_id: str, tenant: str | None = None) -> int:
        """The longest prompt, in tokens, up to which no prompt is compressed, all bands considered."""
        row, below = self._row(target_id, tenant), 0
        for border, value in zip(row.borders, row.values, strict=False):
            if value.defaults.compress_above_tokens < border:
                return max(below, value.defaults.compress_above_tokens)
            below = border
        return max(below, row.values[-1].defaults.compress_above_tokens)

    def _row(self, target_id: str, tenant: str | None) -> _Row:
        # Models and tenants that the file does not name share a row, so that callers cannot grow the table.
        rules = self._rules
        key = target_id if target_id in rules.models else None, tenant if tenant in rules.tenants else None
        if key not in self._rows:
            named = rules.models.get(target_id), rules.tenants.get(tenant or "")
            self._rows[key] = self._resolve([rules.everyone, *(level for level in named if level is not None)])
        return self._rows[key]

    def _resolve(self, levels: list[OverrideLevel]) -> _Row:
        borders = sorted({band.up_to_tokens or 0 for level in levels for band in level.bands} - {0})
        lengths = [*borders, borders[-1] + 1 if borders else 1]
        return _Row(tuple(borders), tuple(self._at(length, levels) for length in lengths))

    def _at(self, prompt_tokens: int, levels: list[OverrideLevel]) -> EffectiveDefaults:
        changes = Override()
        for level in levels:
            changes = level.at(prompt_tokens).over(changes)
        return EffectiveDefaults(self._build(changes.settings), Budget(**changes.budget))
