"""Precedence: settings < file < model < tenant; a band over its own level; the caller over everything."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest
from presift.core.policies import SpecPc
from presift.orchestrator.config.overrides import (
    EffectiveDefaults,
    Override,
    OverrideBand,
    OverrideLevel,
    OverrideRules,
    OverrideTable,
)
from presift.orchestrator.domain.request import Budget
from presift.orchestrator.routing.choice import Defaults

BASE = {"capacity": 100, "compress_above_tokens": 400, "cascade_capacity": 200}


def build(changes):
    values = BASE | changes
    return Defaults(
        SpecPc(values["capacity"], window=10),
        values["compress_above_tokens"],
        cascade_capacity=values["cascade_capacity"],
    )


def level(*bands, budget=None, **settings):
    """Bands as (up_to_tokens, settings)."""
    return OverrideLevel(
        Override(settings, budget or {}), tuple(OverrideBand(up_to, Override(values)) for up_to, values in bands)
    )


RULES = OverrideRules(
    level((1000, {"capacity": 110}), (None, {"capacity": 120}), capacity=105, cascade_capacity=205),
    {"big": level(cascade_capacity=210, compress_above_tokens=500)},
    {"acme": level((2000, {"compress_above_tokens": 600}), (None, {}), compress_above_tokens=550, capacity=130)},
)


def found(tokens, target="", tenant=None):
    defaults = OverrideTable(build, RULES).lookup(tokens, target, tenant).defaults
    return defaults.spec_pc.capacity, defaults.cascade_capacity, defaults.compress_above_tokens


@pytest.mark.parametrize(
    ("who", "wanted"),
    [
        ((1,), (110, 205, 400)),
        ((1000,), (110, 205, 400)),  # the border belongs to the band
        ((1001,), (120, 205, 400)),
        ((10**9,), (120, 205, 400)),
        ((500, "big"), (110, 210, 500)),
        ((500, "big", "acme"), (130, 210, 600)),
        ((500, "unknown", "acme"), (130, 205, 600)),
        ((2000, "", "acme"), (130, 205, 600)),
        ((2001, "", "acme"), (130, 205, 550)),  # an empty band keeps the plain keys
        ((500, "big", "unknown"), (110, 210, 500)),
    ],
)
def test_precedence_and_borders(who, wanted):
    assert found(*who) == wanted


def test_without_rules_the_settings_apply():
    assert OverrideTable(build).lookup(7, "any", "any") == EffectiveDefaults(build({}))


def test_the_default_budget_fills_in_what_the_caller_left_unset():
    rules = OverrideRules(
        level(budget={"max_prompt_tokens": 80, "min_coverage": 0.5, "strict": True}),
        tenants={"lax": level(budget={"strict": False, "max_kv_tokens": 90})},
    )
    table = OverrideTable(build, rules)
    everyone, lax = (table.lookup(1, "", tenant) for tenant in (None, "lax"))
    assert everyone.complete_budget(Budget()) == Budget(max_prompt_tokens=80, min_coverage=0.5, strict=True)
    asked = Budget(max_prompt_tokens=70, max_ttft_ms=9, compress_above_tokens=0)
    assert everyone.complete_budget(asked) == replace(asked, min_coverage=0.5, strict=True)
    assert lax.budget == Budget(max_prompt_tokens=80, max_kv_tokens=90, min_coverage=0.5)
    assert lax.complete_budget(Budget(strict=True)).strict and not lax.complete_budget(Budget()).strict


@pytest.mark.parametrize(
    ("bands", "least"),
    [
        ([], 400),
        ([(300, {"compress_above_tokens": 900}), (None, {})], 400),
        ([(500, {"compress_above_tokens": 900}), (None, {})], 500),
        ([(500, {"compress_above_tokens": 100}), (None, {"compress_above_tokens": 900})], 100),
        ([(500, {}), (None, {"compress_above_tokens": 0})], 400),
        ([(350, {}), (None, {"compress_above_tokens": 0})], 350),
    ],
)
def test_the_longest_prompt_that_is_never_compressed(bands, least):
    assert OverrideTable(build, OverrideRules(level(*bands))).compress_above_tokens("any") == least


@pytest.mark.parametrize("borders", [(5,), (5, 5, None), (7, 5, None), (None, 5), (None, None), (0, None), (-1, None)])
def test_invalid_bands_are_refused(borders):
    with pytest.raises(InvalidRequest, match=r"bands\[\d\]\.up_to_tokens"):
        level(*((border, {}) for border in borders))


def test_names_that_the_file_does_not_contain_use_no_memory():
    table = OverrideTable(build, RULES)
    for i in range(100):
        table.lookup(1, f"m{i}", f"t{i}")
    assert len(table._rows) == 1


LEVELS = st.builds(
    lambda borders, plain, values: level(
        *zip([*sorted(borders), None], [{"capacity": v} for v in values], strict=False), **plain
    ),
    st.sets(st.integers(1, 50), min_size=3, max_size=3),
    st.fixed_dictionaries({}, optional={"capacity": st.integers(10, 99), "cascade_capacity": st.integers(1, 9)}),
    st.lists(st.integers(100, 199), min_size=4, max_size=4),
)


@given(st.tuples(LEVELS, LEVELS, LEVELS), st.integers(1, 60), st.booleans(), st.booleans())
def test_lookup_finds_the_right_band_and_repeats_its_answer(levels, tokens, has_model, has_tenant):
    everyone, model, tenant = levels
    table = OverrideTable(build, OverrideRules(everyone, {"m": model}, {"t": tenant}))
    who = tokens, "m" if has_model else "", "t" if has_tenant else None
    expected = dict(BASE)
    for each in (everyone, *([model] * has_model), *([tenant] * has_tenant)):
        expected |= each.changes.settings
        band = next(band for band in each.bands if band.up_to_tokens is None or tokens <= band.up_to_tokens)
        expected |= band.changes.settings
    assert table.lookup(*who) == table.lookup(*who) == EffectiveDefaults(build(expected))
