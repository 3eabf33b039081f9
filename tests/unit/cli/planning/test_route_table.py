"""`presift route`: a table of predictions, and the choice."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from presift.cli.app import app
from presift.cli.planning.route_table import Budget, Prompt, _speeds, defaults_for, deployment_of, predict
from presift.orchestrator.routing.cost_model import SELECTION_SEED, TARGET_SEED, TokenWork
from presift.v1 import orchestrator_pb2, plan_pb2
from presift_client import Info, Model, PolicyFile, StageSpeed
from presift_client.results import info_of


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(app, ["route", *map(str, arguments)])


def test_the_table_has_every_route_and_the_choice(run):
    result = run("--tokens", 10_000)
    assert result.exit_code == 0
    assert all(name in result.output for name in ("full", "spec_kv", "spec_kv_pc", "spec_pc", "1,024", "TTFT ms"))
    assert "-> spec_pc" in result.output and "spec_pc: over_budget" in result.output


@pytest.mark.parametrize(
    ("flags", "route", "reason"),
    [
        (["--tokens", 3000], "full", "below_threshold"),
        (["--tokens", 3000, "--compress-above", 0], "spec_pc", "over_budget"),
        (["--tokens", 10_000, "--cached-prefix", 9_900], "full", "cheapest"),
        (["--tokens", 10_000, "--max-kv-tokens", 800], "spec_kv", "over_budget"),
        (["--tokens", 10_000, "--max-ttft-ms", 60_000], "spec_kv_pc", "over_budget"),
        (["--tokens", 10_000, "--max-prompt-tokens", 800], "spec_pc", "over_budget"),
        (["--tokens", 10_000, "--max-ttft-ms", 10], "spec_pc", "budget_not_met"),
        (["--tokens", 100_000], "spec_pc", "over_budget"),
    ],
)
def test_the_choice_as_json(run, flags, route, reason):
    result = run(*flags, "--json")
    found = json.loads(result.output)
    assert (result.exit_code, found["route"], found["reason"]) == (0, route, reason)
    assert [each["route"] for each in found["routes"]] == ["full", "spec_kv", "spec_kv_pc", "spec_pc"]


def test_a_refusal_has_a_table(run):
    result = run("--tokens", 10_000, "--max-ttft-ms", 10, "--strict")
    assert result.exit_code == 1 and "refused: strict budget not met" in result.output and "spec_kv_pc" in result.output


def test_settings_of_the_orchestrator_apply(run, monkeypatch):
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_CAPACITY", "2000")
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_ROUTE_ORDER", "full,spec_pc")
    found = json.loads(run("--tokens", 10_000, "--json").output)
    assert [each["route"] for each in found["routes"]] == ["full", "spec_pc"]
    assert found["routes"][1]["read_tokens"] == 2000


def test_bad_values_are_one_line(run, monkeypatch):
    result = run("--tokens", 10_000, "--max-kv-tokens", 0)
    assert result.exit_code == 1 and result.stderr == "error: budget.max_kv_tokens is 0; it must be >= 1\n"
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_ROUTE_ORDER", "full,warp")
    result = run("--tokens", 10_000)
    assert result.exit_code == 1 and "warp" in result.stderr and "spec_pc" in result.stderr


POLICY = """
capacity: 700
tenants:
  acme: {budget: {max_kv_tokens: 800}}
  strict: {budget: {max_ttft_ms: 10, strict: true}}
models:
  small: {bands: [{up_to_tokens: 10000, capacity: 600}, {compress_above_tokens: 20000}]}
"""


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.mark.parametrize(
    ("flags", "route", "detail"),
    [
        ([], "spec_pc", "keeps 700 prompt tokens"),
        (["--tenant", "unknown"], "spec_pc", "keeps 700 prompt tokens"),
        (["--model", "small"], "spec_pc", "keeps 600 prompt tokens"),
        (["--model", "small", "--tokens", 10_001], "full", "compressed above 20000"),
        (["--tenant", "acme"], "spec_kv", "of 800"),
        (["--tenant", "acme", "--max-kv-tokens", 900], "spec_kv", "of 900"),
    ],
)
def test_a_policy_file_applies(run, policy, flags, route, detail):
    found = json.loads(run("--tokens", 10_000, "--policy", policy, *flags, "--json").output)
    assert found["route"] == route and detail in found["detail"]


def test_the_flag_replaces_the_policy_file_of_the_settings(run, policy, tmp_path, monkeypatch):
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_POLICY_FILE", str(policy))
    assert "keeps 700 prompt tokens" in json.loads(run("--tokens", 10_000, "--json").output)["detail"]
    other = tmp_path / "other.yaml"
    other.write_text("capacity: 800")
    found = json.loads(run("--tokens", 10_000, "--policy", other, "--json").output)
    assert "keeps 800 prompt tokens" in found["detail"]


def test_a_strict_budget_of_the_file_and_a_bad_file(run, policy):
    result = run("--tokens", 10_000, "--policy", policy, "--tenant", "strict")
    assert result.exit_code == 1 and "refused: strict budget not met" in result.output
    policy.write_text("capacity: 700\nwarp: 1\n")
    result = run("--tokens", 10_000, "--policy", policy)
    assert result.exit_code == 1
    assert result.stderr == "error: policy.yaml:2: warp: unknown key (it is 1)\n"


def test_an_adaptive_capacity_is_predicted_at_its_maximum(run):
    found = json.loads(run("--tokens", 10_000, "--auto-coverage", 0.9, "--json").output)
    assert found["route"] == "spec_pc" and "keeps up to 1024 prompt tokens" in found["detail"]
    assert run("--tokens", 10_000, "--auto-coverage", 1.5).exit_code == 1


def test_eighty_columns_show_the_mark_and_the_reason(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--tokens", 10_000, "--max-kv-tokens", 800).output.splitlines()
    full, chosen = (next(line for line in lines if f" {route} " in line) for route in ("full", "spec_kv"))
    assert "needs" in full and chosen.startswith("->") and chosen.rstrip().endswith("met")


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_no_word_is_cut_in_a_narrow_terminal(run, monkeypatch, columns):
    example = Path(__file__).parents[4] / "ops" / "policy.example.yaml"
    monkeypatch.setenv("COLUMNS", str(columns))
    result = run("--tokens", 100_000, "--policy", example, "--tenant", "legal")
    words = result.output.split()
    table = " ".join(words[: words.index("over_budget") - 1] if "over_budget" in words else words)
    assert "is not possible: prompt is 100000 tokens" in table and "…" not in result.output
    whole = ("(context", "answer)", "spec_kv_pc", "ms/token", "budget", "20,000")
    assert all(word in table.split() for word in whole)
    if columns == 80:
        assert all(len(line) <= 80 for line in result.output.splitlines())


def info(digest=None):
    file = None if digest is None else PolicyFile(digest, "2026-01-01T00:00:00Z")
    return Info(None, Model("m", "r", 32_768), ("full", "spec_pc"), 4096, policy_file=file)


@pytest.fixture
def served(monkeypatch):
    """Sets what the orchestrator at `--address` reports."""

    class Known:
        info = None

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("presift.cli.commands.route.connect", lambda *given: Known())
    return lambda found: setattr(Known, "info", lambda self: found)


def test_a_policy_file_of_the_orchestrator_is_warned_about(run, served, policy, monkeypatch):
    asked = ("--tokens", 10_000, "--address", "there:1", "--json")
    served(info("ab" * 32))
    result = run(*asked)
    assert result.exit_code == 0 and json.loads(result.stdout)["route"] == "spec_pc"
    assert "warning: the orchestrator uses a policy file (sha256 abababababab...)" in result.stderr
    assert "--policy FILE" in result.stderr
    assert run(*asked, "--policy", policy).stderr == ""
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_POLICY_FILE", str(policy))
    assert "another one" in run(*asked).stderr
    served(info(hashlib.sha256(policy.read_bytes()).hexdigest()))
    assert run(*asked).stderr == ""
    served(info())
    assert run(*asked).stderr == ""


def test_speeds_that_only_an_administrator_sees_are_warned_about(run, served):
    served(replace(info(), restricted=True))
    result = run("--tokens", 10_000, "--address", "there:1", "--json")
    assert result.exit_code == 0 and "learned speeds only to an admin key" in result.stderr


def test_a_tenant_needs_a_policy_file(run, served, policy, monkeypatch):
    served(info("ab" * 32))
    for where in ([], ["--address", "there:1"]):
        result = run("--tokens", 10_000, "--tenant", "acme", *where)
        assert result.exit_code == 1 and "--tenant needs a policy file" in result.stderr
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_POLICY_FILE", str(policy))
    assert run("--tokens", 10_000, "--tenant", "acme").exit_code == 0


def test_scoring_without_observations_is_as_fast_as_the_target():
    fast, target = TARGET_SEED.scaled(1 / 50), Model("m", "r1", 4000)
    learned = StageSpeed("target", "m@r1", "", *fast.weights, observations=3, contention=0.0, early_renewals=0.0)
    selection, reading = _speeds([learned], None, target).selection, TokenWork(40, 8000)
    assert selection.ms(reading) == pytest.approx(SELECTION_SEED.ms(reading) / 50)


@pytest.mark.parametrize(("fingerprint", "route"), [("f", "full"), ("g", "spec_pc")])
def test_prompts_longer_than_the_context_of_the_draft(fingerprint, route):
    """A draft with another vocabulary counts other tokens, so its limit is unknown."""
    target = orchestrator_pb2.GetInfoResponse(
        target=plan_pb2.ModelInfo(id="t", context_tokens=32_768, tokenizer_fingerprint="f"),
        draft=plan_pb2.ModelInfo(id="d", context_tokens=8192, tokenizer_fingerprint=fingerprint),
        supported_routes=[plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC],
        compress_above_tokens=4096,
    )
    effective = defaults_for(10_000, None, "t", None)
    found = predict(effective, Budget(), Prompt(10_000, 0, 256), deployment_of(info_of(target)))
    assert found.choice.route == route
    why = {each.route: each.why_not for each in found.routes}["spec_pc"]
    assert why.startswith("is not possible: the draft reads at most 8192 tokens") is (route == "full")
