"""The commands, run in this process against an address without a server."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from presift.cli.app import app
from presift.cli.stack.stack import Observability
from presift_client import Info, Model, TlsOptions

NO_SERVER = ["--address", "127.0.0.1:1"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("PRESIFT_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def test_help_names_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(
        name in result.output for name in ("up", "generate", "explain", "eval", "models", "route", "plan", "keys")
    )


def test_misuse_prints_one_line(run):
    result = run("generate", *NO_SERVER)
    assert result.exit_code == 1 and result.stderr == "error: give either a PROMPT or --question\n"


@pytest.fixture
def sent(monkeypatch):
    """The options that `generate` would send, one entry per run."""
    options = []
    monkeypatch.setattr("presift.cli.commands.generate.print_stream", lambda client, sent: options.append(sent))
    return options


def test_kv_options_are_sent(run, sent):
    kv = ["--kv-selection", "draft_mask", "--no-keep-full-prefix", "--kv-lookahead-tokens", "0"]
    kv += ["--kv-lookahead", "auto", "--first-full-tokens", "8", "--renew-every", "12", "--renew-window", "4"]
    result = run("generate", "hi", "--route", "spec_kv", "--max-kv-tokens", 257, *kv, "--continue-prompt-tokens", 9)
    assert result.exit_code == 0
    wanted = {
        "route": "spec_kv",
        "max_kv_tokens": 257,
        "kv_selection": "draft_mask",
        "keep_full_prefix": False,
        "kv_lookahead_tokens": 0,
        "continue_prompt_tokens": 9,
        "kv_lookahead": "auto",
        "first_full_tokens": 8,
        "renew_every": 12,
        "renew_window": 4,
    }
    assert wanted.items() <= sent[0].items()
    assert run("generate", "hi", "--keep-full-prefix").exit_code == 0 and sent[1]["keep_full_prefix"] is True


def test_migrate_is_sent_where_it_is_given(run, sent):
    assert run("generate", "hi", "--migrate").exit_code == run("generate", "hi").exit_code == 0
    assert sent[0]["migrate"] is True and "migrate" not in sent[1]


def test_limits_are_sent(run, sent):
    assert run("generate", "hi", "--max-ttft-ms", 900, "--min-coverage", 0.5, "--auto-coverage", 0.75).exit_code == 0
    assert {"max_ttft_ms": 900, "min_coverage": 0.5, "auto_coverage": 0.75}.items() <= sent[0].items()


def test_the_form_of_the_answer_is_sent(run, sent, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("{}")
    files = ["--tools", tmp_path / "a.json", "--json-schema", tmp_path / "b.json"]
    assert run("generate", "--question", "hi", *files).exit_code == 0
    assert (sent[0]["tools"], sent[0]["json_schema"]) == ([], {})


def test_options_without_a_flag_are_not_sent(run, sent):
    assert run("generate", "hi").exit_code == 0
    assert not {"max_new_tokens", "tools", "json_schema", "choices"} & sent[0].keys()
    assert not {"kv_selection", "keep_full_prefix", "kv_lookahead_tokens", "continue_prompt_tokens"} & sent[0].keys()


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ([], []),
        (["--kv-capacity", "256"], ["--kv-capacity", "256"]),
        (["--no-prefill-while-drafting"], ["--no-prefill-while-drafting"]),
        (["--prefill-while-drafting"], ["--prefill-while-drafting"]),
        (["--insecure"], ["--insecure"]),
        (["--policy-file", "p.yaml"], ["--policy-file", "p.yaml"]),
        (["--draft", "org/small", "--cross-vocabulary"], ["--cross-vocabulary", "--draft-tokenizer", "org/small"]),
        (
            ["--http-models", "gpt-4o,*", "--http-max-tokens", "64"],
            ["--http-models", "gpt-4o,*", "--http-max-tokens", "64"],
        ),
        (["--http-origins", "http://localhost:3000"], ["--http-origins", "http://localhost:3000"]),
    ],
)
def test_up_passes_flags_to_the_orchestrator(run, monkeypatch, arguments, flags):
    started = []
    monkeypatch.setattr("presift_demo_models.fetch.resolve_model", lambda name, home, progress: name)
    monkeypatch.setattr(
        "presift.cli.stack.run.run_until_stopped", lambda options, progress: started.append(options) or 0
    )
    assert run("up", *arguments).exit_code == 0
    assert started[0].orchestrator_flags == flags
    assert run("up", "--listen", "127.0.0.1:4000").exit_code == 0
    assert started[0].logs.name == "50051" and started[1].logs.name == "4000"


def test_up_passes_parsers_to_the_target(run, monkeypatch):
    started = []
    monkeypatch.setattr("presift_demo_models.fetch.resolve_model", lambda name, home, progress: name)
    monkeypatch.setattr(
        "presift.cli.stack.run.run_until_stopped", lambda options, progress: started.append(options) or 0
    )
    flags = ["--tool-call-parser", "qwen25", "--reasoning-parser", "none"]
    assert run("up", *flags).exit_code == 0 and started[0].target_flags == flags
    assert run("up").exit_code == 0 and started[1].target_flags == []


@pytest.mark.parametrize(
    ("arguments", "observed"),
    [
        ([], None),
        (["--observability"], Observability(9464, None)),
        (["--observability", "--metrics-from", "9500"], Observability(9500, None)),
        (["--otlp-endpoint", "collector:4317"], Observability(9464, "collector:4317")),
    ],
)
def test_up_with_observability(run, monkeypatch, arguments, observed):
    started = []
    monkeypatch.setattr("presift_demo_models.fetch.resolve_model", lambda name, home, progress: name)
    monkeypatch.setattr(
        "presift.cli.stack.run.run_until_stopped", lambda options, progress: started.append(options) or 0
    )
    assert run("up", *arguments).exit_code == 0
    assert started[0].observability == observed


@pytest.mark.parametrize("flag", ["--draft", "--target"])
@pytest.mark.parametrize("name", ["qwen2.5-coder-1.5b-instrukt", "./models/none", "/no/such/folder", "gpt2", "a/b/c"])
def test_up_with_an_unknown_model_fails_before_anything_is_downloaded(run, monkeypatch, tmp_path, flag, name):
    monkeypatch.setattr("presift_demo_models.fetch.ensure_model", None)
    monkeypatch.setattr("presift.cli.stack.run.run_until_stopped", None)
    other = "--target" if flag == "--draft" else "--draft"
    result = run("up", flag, name, other, tmp_path)
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {flag} is '{name}'; it must be")
    assert "qwen2.5-coder-0.5b-instruct, qwen2.5-coder-1.5b-instruct, smollm2-135m-instruct" in result.stderr
    assert ("did you mean qwen2.5-coder-1.5b-instruct?" in result.stderr) == name.startswith("qwen")


def test_up_without_the_packages_that_run_models_names_them(run, monkeypatch, tmp_path):
    monkeypatch.setattr("presift.cli.commands.up.find_spec", lambda name: None if name == "sglang" else name)
    monkeypatch.setattr("presift_demo_models.fetch.ensure_model", None)
    result = run("up")
    assert result.exit_code == 1 and result.stderr.startswith("error: `presift up` runs the models, but sglang cannot")
    assert "extras draft and target" in result.stderr


def test_an_unknown_route_is_an_error(run):
    result = run("generate", "hi", "--route", "warp", *NO_SERVER)
    assert result.exit_code == 1 and "spec_pc" in result.stderr and "Traceback" not in result.stderr


def test_no_server_is_an_error(run):
    result = run("generate", "hi", "--deadline", "5", *NO_SERVER)
    assert result.exit_code == 1 and result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_a_missing_file_is_an_error(run, tmp_path):
    result = run("generate", "--question", "why?", "--document", tmp_path / "none.txt", *NO_SERVER)
    assert result.exit_code == 1 and "none.txt" in result.stderr


def test_models_as_json(run):
    result = run("models", "--json", *NO_SERVER)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["served"] is None and printed["local"] and set(printed["local"].values()) == {None}


def test_models_says_that_replicas_need_an_admin_key(run, monkeypatch):
    info = Info(None, Model("m", "r", 32_768), ("full",), 4096, restricted=True)
    monkeypatch.setattr("presift.cli.commands.models.served_models", lambda client: info)
    result = run("models", *NO_SERVER)
    assert result.exit_code == 0 and "admin key" in " ".join(result.stdout.split())


@pytest.fixture
def no_fetcher(monkeypatch):
    """An installation without the package that fetches demo models."""
    for module in ("presift_demo_models", "presift_demo_models.fetch"):
        monkeypatch.setitem(sys.modules, module, None)


MISSING = "demo models are unavailable, because the Python package presift_demo_models is not installed"


def test_models_without_the_fetcher_names_the_missing_package(run, no_fetcher):
    result = run("models", "--json", *NO_SERVER)
    assert result.exit_code == 0 and json.loads(result.stdout) == {"local": {}, "served": None}
    assert result.stderr.startswith(f"warning: {MISSING}") and "presift[cli]" in result.stderr
    result = run("models", "--ensure", "qwen2.5-coder-0.5b-instruct", *NO_SERVER)
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {MISSING}")


def test_up_without_the_fetcher_takes_folders_and_hub_ids(run, no_fetcher, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("presift.cli.stack.run.run_until_stopped", lambda options, progress: started.append(options))
    assert run("up", "--draft", tmp_path, "--target", "org/model").exit_code == 0
    assert (started[0].draft, started[0].target) == (str(tmp_path), "org/model")
    result = run("up")
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {MISSING}") and len(started) == 1


def test_an_unknown_model_is_an_error(run):
    result = run("models", "--ensure", "no-such-model", *NO_SERVER)
    assert result.exit_code == 1 and result.stderr.startswith("error: ")


def test_a_tenant_is_sent_or_refused_before_any_call(run, monkeypatch):
    tenants = []
    monkeypatch.setattr(
        "presift.cli.commands.generate.print_stream", lambda client, options: tenants.append(client._metadata)
    )
    assert run("generate", "hi", "--tenant", "acme").exit_code == run("generate", "hi").exit_code == 0
    assert tenants == [(("presift-tenant", "acme"),), ()]
    for command in ("generate", "explain"):
        result = run(command, "hi", "--tenant", "ä", *NO_SERVER)
        assert result.exit_code == 1 and result.stderr.startswith("error: tenant is 'ä'")


@pytest.fixture
def connected(monkeypatch):
    """The options that each command's client is made with."""
    made = []
    monkeypatch.setattr("presift.cli.connection.Client", lambda *address, **options: made.append(options) or fail())

    def fail():
        raise ValueError("no client in this test")

    return made


COMMANDS = [["generate", "hi"], ["explain", "hi"], ["models"], ["route", "--tokens", "9", "--address", "127.0.0.1:1"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_takes_credentials_and_authorities(run, connected, monkeypatch, tmp_path, command):
    key_file = tmp_path / "key"
    key_file.write_text("k1\n")
    run(*command, "--ca", "ca.pem", "--cert", "c.pem", "--key", "k.pem", "--api-key-file", key_file)
    assert connected[-1]["api_key"] == "k1"
    assert connected[-1]["tls"] == TlsOptions(*(Path(name) for name in ("ca.pem", "c.pem", "k.pem")))
    run(*command)
    assert connected[-1]["api_key"] is None and connected[-1]["tls"] is None
    monkeypatch.setenv("PRESIFT_API_KEY", "k2")
    monkeypatch.setenv("PRESIFT_CA", "other.pem")
    run(*command)
    assert connected[-1]["api_key"] == "k2" and connected[-1]["tls"] == TlsOptions(Path("other.pem"))
    run(*command, "--api-key-file", key_file)
    assert connected[-1]["api_key"] == "k1"


def test_a_key_that_cannot_be_sent_is_not_printed(run, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("xylophone xylophone")
    result = run("generate", "hi", "--api-key-file", key_file, *NO_SERVER)
    assert result.exit_code == 1 and "api_key" in result.stderr and "xylophone" not in result.output
    result = run("generate", "hi", "--ca", tmp_path / "nowhere.pem", *NO_SERVER)
    assert result.exit_code == 1 and "nowhere.pem" in result.stderr
    result = run("generate", "hi", "--cert", tmp_path / "nowhere.pem", *NO_SERVER)
    assert result.exit_code == 1 and "cert and key must be given together" in result.stderr
