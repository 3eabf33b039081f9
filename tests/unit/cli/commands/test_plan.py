"""`presift plan`: a table or JSON, the same choices as AUTO, and errors in one line."""

import json

import pytest
from typer.testing import CliRunner

from presift.cli.app import app
from presift_client import Info, Model, StageSpeed

LOAD = ["--rate", 0.02, "--mix", "2000:0.5,8000:0.5"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PRESIFT_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_the_table_has_replicas_and_assumptions(run):
    result = run(*LOAD)
    assert result.exit_code == 0, result.output
    for words in (
        "with presift",
        "without presift",
        "drafts",
        "KV held, GiB",
        "spec_pc",
        "assumptions",
        "measured with the demo pair",
        "28 KiB",
    ):
        assert words in result.output
    assert "ESTIMATE" not in result.output
    assert "ESTIMATE" in run(*LOAD, "--device", "h100").output


def test_compressed_prompts_need_fewer_targets_and_hold_less(run):
    found = json.loads(
        run("--rate", 1, "--mix", "64000", "--target", "qwen2.5-7b", "--device", "h100", "--json").output
    )
    compressed, full = found["with_presift"], found["without"]
    assert found["requests"][0]["route"] == "spec_pc"
    assert compressed["targets"]["replicas"] < full["targets"]["replicas"] and full["drafts"]["replicas"] == 0
    assert compressed["kv_bytes_held"] < full["kv_bytes_held"] / 10
    assert compressed["kv_bytes_held"] == pytest.approx(compressed["kv_tokens_held"] * 57_344, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "routes"),
    [
        ([], ["full", "spec_pc"]),
        (["--route", "full"], ["full", "full"]),
        (["--route", "spec_kv"], ["full", "spec_kv"]),
        (["--max-kv-tokens", 600], ["full", "spec_kv"]),
        (["--compress-above", 1000], ["spec_pc", "spec_pc"]),
        (["--compress-above", 100_000], ["full", "full"]),
    ],
)
def test_routes_are_those_of_an_orchestrator(run, flags, routes):
    result = run(*LOAD, *flags, "--json", "--device", "h100", "--target", "qwen2.5-7b")
    found = json.loads(result.output)
    assert [each["route"] for each in found["requests"]] == routes
    if routes == ["full", "full"]:
        assert found["with_presift"] == found["without"]


def test_settings_of_the_orchestrator_apply(run, monkeypatch):
    monkeypatch.setenv("PRESIFT_ORCHESTRATOR_CAPACITY", "777")
    assert json.loads(run(*LOAD, "--json", "--device", "h100").output)["requests"][1]["read_tokens"] == 777


def test_prompts_that_do_not_fit_in_full_are_planned_with_presift_only(run):
    flags = ["--rate", 1, "--mix", "100000", "--context", 32_768, "--device", "h200", "--target", "qwen2.5-7b"]
    assert "without presift: " in run(*flags).output
    found = json.loads(run(*flags, "--json").output)
    assert found["without"] is None and found["why_not"] and found["requests"][0]["route"] == "spec_pc"


def test_measured_speeds_are_used_and_printed(run):
    flags = [*LOAD, "--draft-tokens-per-s", 20_000, "--target-tokens-per-s", 9_000, "--decode-step-ms", 5]
    result = run(*flags)
    assert "draft_tokens_per_s: 20000, as given" in result.output and "decode step: 5.0 ms" in result.output
    slow, fast = (json.loads(run(*each, "--json").output)["with_presift"]["targets"] for each in (LOAD, flags))
    assert fast["utilisation"] < slow["utilisation"] / 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", 0, "--mix", "100"], "rate is 0.0; it must be above 0"),
        (["--rate", 1, "--mix", "100:0.5"], "mix is 0.5; it must be 1, the sum of all shares"),
        ([*LOAD, "--device", "tpu"], "device is tpu; it must be one of cpu, l4"),
        ([*LOAD, "--target", "gpt"], "target is gpt; it must be a folder with a config.json, or one of "),
        ([*LOAD, "--route", "fast"], "route is fast; it must be one of auto, full"),
        ([*LOAD, "--utilisation", 1.5], "utilisation is 1.5; it must be above 0 and below 1"),
        ([*LOAD, "--draft", "qwen2.5-72b", "--draft-device", "l4"], "device is l4; it must be a device with more than"),
        ([*LOAD, "--kv-pool-tokens", 100], "kv_pool_tokens is 100; it must be at least"),
        (["--rate", 1, "--mix", "200000", "--route", "full"], "200"),
    ],
)
def test_bad_input_is_refused_with_field_value_and_limit(run, flags, message):
    result = run(*flags)
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1 and not result.stdout


class Orchestrator:
    """A client whose orchestrator has learned the speeds of two stages, which it may keep to itself."""

    def __init__(self, *, restricted=False):
        self.restricted = restricted

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def info(self):
        target, draft = (Model(id=name, revision="1", tokenizer_fingerprint="", context_tokens=4096) for name in "td")
        known = {
            "call_ms": 0.0,
            "megapair_ms": 0.0,
            "step_ms": 0.0,
            "observations": 9,
            "contention": 0.0,
            "early_renewals": 0.0,
            "replica": "",
        }
        speeds = tuple(
            StageSpeed(stage=stage, model=f"{name}@1", token_ms=0.01, **known)
            for stage, name in (("draft", "d"), ("target", "t"))
        )
        if self.restricted:
            return Info(draft, target, ("full",), compress_above_tokens=4096, restricted=True)
        return Info(draft, target, ("full",), compress_above_tokens=4096, speeds=speeds)


def test_speeds_learnt_by_an_orchestrator_are_used(run, monkeypatch):
    connections = []
    monkeypatch.setattr(
        "presift.cli.commands.plan.connect", lambda flags, settings: connections.append(flags) or Orchestrator()
    )
    result = run("--rate", 1, "--mix", "2000", "--address", "there:1", "--tls")
    assert (connections[0].address, connections[0].tls) == ("there:1", True)
    assert (
        "learned by the orchestrator" in result.output
        and "time to read 2,000 tokens: draft 0.02 s, target 0.02 s" in result.output
    )


def test_speeds_that_only_an_admin_key_shows_are_warned_about(run, monkeypatch):
    monkeypatch.setattr("presift.cli.commands.plan.connect", lambda flags, settings: Orchestrator(restricted=True))
    result = run("--rate", 1, "--mix", "2000", "--address", "there:1")
    assert result.exit_code == 0 and "only to an admin key" in result.stderr
    assert result.stdout == run("--rate", 1, "--mix", "2000").stdout
