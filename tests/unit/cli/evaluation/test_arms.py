"""Routes and budgets become arms, and arms the options of a request."""

import pytest

from presift.cli.evaluation.arms import arms_of, budget_of, readers_of


def test_full_comes_first_and_once():
    names = [arm.name for arm in arms_of("spec_kv, full,spec_pc,spec_pc", "25%,512,default")]
    assert names == [
        "full",
        *(f"spec_kv {budget}" for budget in ("25%", "512", "default")),
        *(f"spec_pc {budget}" for budget in ("25%", "512", "default")),
    ]
    assert [arm.name for arm in arms_of("spec_pc", "0.25,25%")] == ["full", "spec_pc 25%"]


@pytest.mark.parametrize("budgets", ["25%,512", ""])
def test_auto_comes_once_without_a_budget(budgets):
    full, auto, *others = arms_of("auto,spec_pc,auto" if budgets else "auto", budgets)
    assert (full.name, auto.name) == ("full", "auto") and auto.options(None) == {"route": "auto"}
    assert not auto.is_relative and len(others) == (2 if budgets else 0)


def test_who_reads_the_whole_prompt():
    assert readers_of("full") == {"target"} and readers_of("spec_pc") == {"draft"}
    assert readers_of("spec_kv") == readers_of("auto") == {"draft", "target"}


@pytest.mark.parametrize(
    ("route", "budget", "options"),
    [
        ("spec_pc", "512", {"max_prompt_tokens": 512}),
        ("spec_kv", "512", {"max_kv_tokens": 512}),
        ("spec_kv_pc", "512", {"max_kv_tokens": 512}),
        ("spec_pc", "0.25", {"max_prompt_tokens": 251}),
        ("spec_kv", "12.5%", {"max_kv_tokens": 126}),
        ("spec_pc", "10%", {"max_prompt_tokens": 101}),
        ("spec_pc", "default", {}),
    ],
)
def test_options(route, budget, options):
    full, arm = arms_of(route, budget)
    assert full.options(None) == {"route": "full"}
    assert arm.options(1001) == {"route": route} | options
    assert arm.is_relative == ("%" in str(arm.budget))


def test_a_share_of_an_even_number_is_not_rounded_up():
    assert budget_of("0.1").limit(1000) == 100 and budget_of("7%").limit(100) == 7


@pytest.mark.parametrize("word", ["0", "1", "1.5", "100%", "-3", "0%", "x", "nan", "25 %%", "max_kv_tokens"])
def test_an_impossible_budget_is_named(word):
    with pytest.raises(ValueError, match="budgets has"):
        budget_of(word)


@pytest.mark.parametrize(
    ("routes", "budgets", "message"),
    [
        ("spec_cp", "512", "routes has 'spec_cp'; each must be one of auto, full, spec_pc, "),
        ("full", "512", "something to compare"),
        ("spec_pc", " ,", "something to compare"),
    ],
)
def test_nothing_to_compare(routes, budgets, message):
    with pytest.raises(ValueError, match="routes") as error:
        arms_of(routes, budgets)
    assert message in str(error.value)
