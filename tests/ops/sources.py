"""The files of ops as the tools that use them read them: Docker Compose, kustomize, Prometheus' rules.

The tests of this folder learn only here what presift's services expect: their settings, ports and version.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from pydantic import ValidationError

from presift.draft.settings import DraftSettings
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.target.settings import TargetSettings

ROOT = Path(__file__).parents[2]
OPS, K8S = ROOT / "ops", ROOT / "ops" / "k8s"
BASE, OBSERVABILITY, TLS = "compose.yaml", "ops/compose.observability.yaml", "ops/compose.tls.yaml"
STACKS = ((BASE,), (BASE, OBSERVABILITY), (BASE, TLS), (BASE, OBSERVABILITY, TLS))
SETTINGS = {"draft": DraftSettings, "target": TargetSettings, "orchestrator": OrchestratorSettings}
ROLES = tuple(SETTINGS)
PORTS = {role: int(each.model_fields["listen"].default.rpartition(":")[2]) for role, each in SETTINGS.items()}
DRAIN_S = {role: float(each.model_fields["drain_s"].default) for role, each in SETTINGS.items()}
LAME_DUCK_S = {
    role: float(each.model_fields["lame_duck_s"].default) if "lame_duck_s" in each.model_fields else 0.0
    for role, each in SETTINGS.items()
}
# Both are off by default, so no setting has these ports; containers use them by convention.
HTTP_PORT, METRICS_PORT, CACHE_PORT = 8000, 9464, 6379
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = yaml.safe_load((ROOT / "services/presift/telemetry/metrics.yaml").read_text())

Object = dict[str, Any]


def variable(role: str, setting: str) -> str:
    """The environment variable of a setting: PRESIFT_DRAFT_LISTEN."""
    return f"PRESIFT_{role}_{setting}".upper()


def stop_s(role: str, environment: Mapping[str, Any]) -> float:
    """Seconds from SIGTERM until running calls are cancelled."""
    defaults = {"drain_s": DRAIN_S[role], "lame_duck_s": LAME_DUCK_S[role]}
    return sum(float(environment.get(variable(role, name), value)) for name, value in defaults.items())


def expected(role: str, metrics: bool) -> dict[str, str | None]:
    """The variables whose value follows from the ports: where a service listens, and where it looks for others."""
    found = {"LISTEN": f"0.0.0.0:{PORTS[role]}", "METRICS_LISTEN": f"0.0.0.0:{METRICS_PORT}" if metrics else None}
    if role == "orchestrator":
        found["HTTP_LISTEN"] = f"0.0.0.0:{HTTP_PORT}"
        found |= {f"{other}_ADDRESS": f"dns:///{other}:{PORTS[other]}" for other in ("draft", "target")}
    return {variable(role, name): value for name, value in found.items()}


def environment_faults(role: str, environment: Mapping[str, str], metrics: bool = True) -> Iterator[str]:
    """Wrong addresses, missing credentials, variables that are no setting of `role`, and values that it refuses."""
    for name, value in expected(role, metrics).items():
        if environment.get(name) != value:
            yield f"{role}: {name} is {environment.get(name)}, not {value}"
    credentials = {"SERVICE_TOKEN_FILE", *(["API_KEYS_FILE"] if role == "orchestrator" else [])}
    missing = {variable(role, name) for name in credentials} - environment.keys()
    if missing or variable(role, "INSECURE") in environment:
        yield f"{role}: does not know its callers, {missing or 'INSECURE'}"
    settings, prefix, given = SETTINGS[role], variable(role, ""), {}
    for name, value in environment.items():
        if name.startswith(prefix) and name.removeprefix(prefix).lower() in settings.model_fields:
            given[name.removeprefix(prefix).lower()] = value
        elif name.startswith("PRESIFT_"):
            yield f"{role} has no variable {name}"
    try:
        settings(_cli_parse_args=[], **given)
    except ValidationError as error:
        yield from (f"{role}: {each['loc'][0]}: {each['msg']}" for each in error.errors(include_input=False))


def is_own_image(image: str) -> bool:
    """Whether presift builds it, whatever the registry."""
    return image.rpartition("/")[2].startswith("presift-")


def has_digest(image: str) -> bool:
    """Whether its content is named, which no one can change, and not a tag alone."""
    return re.search(r"@sha256:[0-9a-f]{64}$", image) is not None


def tool(name: str) -> str:
    """Path of a program that `make check` installs. Skips where it is missing, but fails in CI."""
    folders = (ROOT / ".venv" / "tools" / "bin", Path(os.environ.get("PRESIFT_TOOLS", "/nonexistent")))
    path = next((each / name for each in folders if (each / name).exists()), None)
    if path is None:
        reason = f"{name} is not in .venv/tools (run `make check`): compose files or images are NOT CHECKED"
        pytest.fail(reason) if os.environ.get("CI") and folders[0].exists() else pytest.skip(reason)
    return str(path)


def compose(*arguments, files=(BASE,), profiles=("cpu", "gpu"), root=ROOT, **environment):
    """Run Docker Compose; it needs no docker engine for `config`."""
    flags = [flag for file in files for flag in ("-f", str(root / file))]
    flags += [flag for profile in profiles for flag in ("--profile", profile)]
    command = [tool("docker-compose"), "--project-directory", str(root), *flags, *arguments]
    known = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=known, timeout=60, check=False)


def config(**options):
    """All that the files say together, as Compose understands it. Asserts that Compose accepts them."""
    done = compose("config", "--format", "json", **options)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    return json.loads(done.stdout)


def env_file() -> dict[str, str]:
    """The variables of .env."""
    return {key: value or "" for key, value in dotenv_values(ROOT / ".env").items()}


def rendered(folder: str | Path) -> list[Object]:
    """The objects of a kustomization (below ops/k8s, or anywhere), fresh at each call. Skips without kustomize, but
    fails in CI, whose machine has kubectl."""
    return copy.deepcopy(_rendered(K8S / folder))


@cache
def _rendered(folder: Path) -> list[Object]:
    for name, command in (("kustomize", ["kustomize", "build"]), ("kubectl", ["kubectl", "kustomize"])):
        if shutil.which(name):
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            return [each for each in yaml.safe_load_all(done.stdout) if each]
    reason = "neither kubectl nor kustomize is on PATH: ops/k8s is NOT CHECKED"
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def get(thing: Any, path: str) -> Any:
    """The field at `path`, words with blanks between; None if it is missing."""
    for step in path.split():
        if isinstance(thing, list) and int(step) < len(thing):
            thing = thing[int(step)]
        else:
            thing = thing.get(step) if isinstance(thing, dict) else None
    return thing


def put(thing: Any, path: str, value: Any) -> None:
    """Plant a fault: set the field at `path`, or delete it if `value` is None."""
    way, _, last = path.rpartition(" ")
    inside = get(thing, way) if way else thing
    key = int(last) if isinstance(inside, list) else last
    if value is None:
        del inside[key]
    else:
        inside[key] = value


def wrong(things: Mapping[str, Any], fields: Iterable[tuple[str, str, Any]]) -> Iterator[str]:
    """The fields (name of a thing, path, the only right value) that have another value."""
    for name, path, value in fields:
        if (found := get(things[name], path)) != value:
            yield f"{name}: {path} is {found}, not {value}"


def unguarded(things: Mapping[str, Any], fields: Iterable[tuple[str, str, Any]]) -> Iterator[str]:
    """The fields in which a planted fault is not found."""
    fields = list(fields)
    for name, path, value in fields:
        put(things[name], path, "planted")
        if len(list(wrong(things, fields))) != 1:
            yield f"{name}: {path}"
        put(things[name], path, value)
