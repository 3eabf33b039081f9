"""The stack as a distribution: what it needs, what an import costs, and the sizes that keep it readable."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import presift_client

ROOT = Path(__file__).parents[2]
SERVICES, CLIENT = ROOT / "services" / "presift", ROOT / "clients" / "python" / "presift_client"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = [path for folder in (SERVICES, CLIENT) for path in folder.rglob("*.py") if path.parent.name != "v1"]
MODULE_LINES, FUNCTION_LINES = 400, 60


def python(code):
    """What `code` prints as JSON, run where only the source roots are known."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SERVICES.parent), str(CLIENT.parent)])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_application_needs_grpcio_and_protobuf_alone():
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert names == {"grpcio", "protobuf"}


def test_the_client_imports_nothing_but_the_wire_contract():
    code = "import json, sys, presift_client; print(json.dumps(sorted(sys.modules)))"
    loaded = python(code)
    ours = {name for name in loaded if name.startswith("presift.")}
    assert ours and all(name == "presift.v1" or name.startswith("presift.v1.") for name in ours)
    foreign = {name.partition(".")[0] for name in loaded} & {
        "numpy",
        "torch",
        "pydantic",
        "opentelemetry",
        "transformers",
    }
    assert not foreign


def module_names(*folders):
    for folder in folders:
        for path in sorted((SERVICES / folder).rglob("*.py")):
            name = ".".join(path.relative_to(SERVICES.parent).with_suffix("").parts)
            yield name.removesuffix(".__init__")


LIGHT = ("core", "v1", "rpc", "cache", "orchestrator", "cli")

IMPORT = """
import importlib, json, os, sys, threading
for name in {names!r}:
    importlib.import_module(name)
children = open(f"/proc/self/task/{{os.getpid()}}/children").read().split() if sys.platform == "linux" else []
heavy = sorted({{"torch", "sglang", "transformers"}} & sys.modules.keys())
print(json.dumps([[thread.name for thread in threading.enumerate()], children, heavy]))
"""


def test_imports_start_nothing_and_load_no_model_library():
    threads, children, heavy = python(IMPORT.format(names=list(module_names(*LIGHT))))
    assert threads == ["MainThread"] and children == [] and heavy == []


def test_imports_of_draft_models_and_target_start_nothing():
    """Modules that stand in for SGLang's own are imported inside its processes alone."""
    names = [name for name in module_names("draft", "models", "target") if "sglang" not in name and ".cpu" not in name]
    threads, children, _ = python(IMPORT.format(names=names))
    assert [name for name in threads if not name.startswith("MainThread")] == [] and children == []


def test_core_needs_numpy_alone():
    code = (
        "import importlib, json, sys\n"
        f"for name in {list(module_names('core'))!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert not set(python(code)) & {"grpc", "google", "torch", "opentelemetry", "pydantic", "redis", "tokenizers"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The signature of a command declares its flags: there the body counts alone.
            first = node.body[0].lineno if path.parent.name == "commands" else node.lineno
            assert node.end_lineno - first < FUNCTION_LINES, node.name


def test_every_module_says_what_it_is():
    silent = [
        path for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_no_cupboard_modules():
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not names & {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}


def test_public_names_of_the_client():
    assert presift_client.__all__ == sorted(presift_client.__all__)
    public = {name for name, value in vars(presift_client).items() if not name.startswith("_") and not is_module(value)}
    assert public == set(presift_client.__all__)
    assert presift_client.__all__ == [
        "AsyncClient",
        "BudgetExceeded",
        "Cancelled",
        "Choice",
        "Client",
        "DeadlineExceeded",
        "Decision",
        "Delta",
        "ExplainedSpan",
        "Explanation",
        "Generation",
        "Info",
        "InternalError",
        "InvalidRequest",
        "KvMask",
        "Model",
        "Overloaded",
        "PermissionDenied",
        "PolicyFile",
        "PresiftError",
        "PromptTooLong",
        "Replica",
        "RouteForecast",
        "RouteQuality",
        "RouteUnsupported",
        "StageSpeed",
        "TlsOptions",
        "TokenLogprob",
        "ToolCall",
        "Unauthenticated",
        "Unavailable",
        "Usage",
        "document_parts",
    ]


def is_module(value):
    return type(value).__name__ == "module"


@pytest.mark.parametrize("command", [[], ["up"], ["generate"], ["explain"], ["models"]])
def test_help(command):
    done = subprocess.run(
        [sys.executable, "-c", "from presift.cli.entry import main; main()", *command, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SERVICES.parent), str(CLIENT.parent)]), "COLUMNS": "120"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "Usage:" in done.stdout


@pytest.mark.parametrize("service", ["orchestrator", "draft", "target"])
def test_services_tell_their_flags(service):
    done = subprocess.run(
        [sys.executable, "-m", f"presift.{service}", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SERVICES.parent)},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0 and "--listen" in done.stdout and "--drain-s" in done.stdout


def test_entry_points_exist():
    from importlib import import_module

    for target in [*PROJECT["scripts"].values(), *PROJECT["entry-points"]["sglang.srt.platforms"].values()]:
        module, _, name = target.partition(":")
        if "target" not in module:
            assert callable(getattr(import_module(module), name))
        else:
            tree = ast.parse((SERVICES.parent / Path(*module.split("."))).with_suffix(".py").read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.processes
def test_the_wheel_alone_has_a_command_that_says_what_it_lacks(tmp_path):
    """The installed script of an environment with nothing else in it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

    def run(*command):
        subprocess.run(command, check=True, timeout=240, capture_output=True)

    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("presift-*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(*pip, f"--python={venv}", "install", "--no-deps", "--no-index", wheel)
    command = venv / "bin" / "presift"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([command, "up"], capture_output=True, text=True, env=clean, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: the command `presift` needs the extra `cli`")
    told = subprocess.run([command, "--version"], capture_output=True, text=True, env=clean, timeout=60, check=True)
    assert told.stdout == f"presift {PROJECT['version']}\n"
