"""Terms: what applies to a request where its caller says nothing, by target, tenant and prompt length. Pure.

Precedence: settings < file < model < tenant; a band over its own level's plain keys; the caller's request over all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.choice import Defaults

# Orchestrator settings by name -> the defaults with those changed. Raises InvalidRequest.
Build = Callable[[Mapping[str, Any]], Defaults]
_LIMITS = ("max_prompt_tokens", "max_kv_tokens", "compress_above_tokens", "max_ttft_ms", "min_coverage")


@dataclass(frozen=True, slots=True)
class EffectiveDefaults:
    """`budget` holds as if the caller had sent it, where the caller's own leaves a limit unset."""

    defaults: Defaults
    budget: Budget = Budget()  # noqa: RUF009 (frozen)

    def budget_over(self, asked: Budget) -> Budget:
        """The caller's budget, completed."""
        unset = {name: getattr(self.budget, name) for name in _LIMITS if getattr(asked, name) is None}
        return replace(asked, strict=asked.strict or self.budget.strict, **unset)


@dataclass(frozen=True, slots=True)
class Override:
    """What one part of a policy file sets: orchestrator settings by name, and fields of the default budget."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)

    def over(self, beneath: Override) -> Override:
        return Override({**beneath.settings, **self.settings}, {**beneath.budget, **self.budget})


@dataclass(frozen=True, slots=True)
class OverrideBand:
    """Prompts of up to so many tokens, None for all that are longer than the other bands."""

    up_to_tokens: int | None
    changes: Override


def misplaced(bands: Sequence[OverrideBand]) -> tuple[int, str] | None:
    """The first band whose limit cannot be, and what it must be."""
    below = 0
    for i, band in enumerate(bands):
        is_last = i == len(bands) - 1
        if is_last != (band.up_to_tokens is None):
            return i, "unset: the last band is open" if is_last else "set: the last band alone is open"
        if band.up_to_tokens is not None and band.up_to_tokens <= below:
            return i, f"> {below}" + (" (the band before)" if i else "")
        below = band.up_to_tokens or below
    return None


@dataclass(frozen=True, slots=True)
class OverrideLevel:
    """The file itself, a model or a tenant. Raises InvalidRequest unless bands ascend and the last alone is open."""

    changes: Override = Override()
    bands: tuple[OverrideBand, ...] = ()

    def __post_init__(self) -> None:
        if found := misplaced(self.bands):
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
    """A policy file as values; models by target model id, tenants by name."""

    everyone: OverrideLevel = OverrideLevel()
    models: Mapping[str, OverrideLevel] = field(default_factory=dict)
    tenants: Mapping[str, OverrideLevel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    """The terms of one target and tenant: `terms[i]` up to `borders[i]` tokens, the last beyond them all."""

    borders: tuple[int, ...]
    terms: tuple[EffectiveDefaults, ...]


class OverrideTable:
    """Resolves once per target and tenant of the file, then looks up."""

    def __init__(self, build: Build, rules: OverrideRules | None = None) -> None:
        self._build = build
        self._rules = OverrideRules() if rules is None else rules
        self._rows: dict[tuple[str | None, str | None], _Row] = {}

    def terms_for(self, prompt_tokens: int, target_id: str, tenant: str | None = None) -> EffectiveDefaults:
        """What applies to a prompt of this length."""
        row = self._row(target_id, tenant)
        return row.terms[bisect_left(row.borders, prompt_tokens)]

    def compress_above_tokens(self, target_id: str, tenant: str | None = None) -> int:
        """No prompt of up to this many tokens is compressed: the least over all lengths."""
        row, below = self._row(target_id, tenant), 0
        for border, terms in zip(row.borders, row.terms, strict=False):
            if terms.defaults.compress_above_tokens < border:
                return max(below, terms.defaults.compress_above_tokens)
            below = border
        return max(below, row.terms[-1].defaults.compress_above_tokens)

    def _row(self, target_id: str, tenant: str | None) -> _Row:
        # Names that the file does not know share a row, so that callers cannot fill the memory.
        rules = self._rules
        key = target_id if target_id in rules.models else None, tenant if tenant in rules.tenants else None
        if key not in self._rows:
            named = rules.models.get(target_id), rules.tenants.get(tenant or "")
            self._rows[key] = self._resolved([rules.everyone, *(level for level in named if level is not None)])
        return self._rows[key]

    def _resolved(self, levels: list[OverrideLevel]) -> _Row:
        borders = sorted({band.up_to_tokens or 0 for level in levels for band in level.bands} - {0})
        lengths = [*borders, borders[-1] + 1 if borders else 1]
        return _Row(tuple(borders), tuple(self._at(length, levels) for length in lengths))

    def _at(self, prompt_tokens: int, levels: list[OverrideLevel]) -> EffectiveDefaults:
        changes = Override()
        for level in levels:
            changes = level.at(prompt_tokens).over(changes)
        return EffectiveDefaults(self._build(changes.settings), Budget(**changes.budget))
