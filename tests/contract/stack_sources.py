"""Where it is said what presift's services are: settings, Dockerfile, compose, Kubernetes, Prometheus, `presift up`.

Each is read to plain values; `test_in_step.py` holds them together. `root` may be a copy with a fault planted in it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from presift.cli.stack import stack as local_stack
from presift.cli.stack.stack import LocalStack, Observability, StackOptions
from presift.draft.settings import DraftSettings
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.rpc.settings import ServiceSettings
from presift.target.settings import TargetSettings

from . import compose_files, manifests

ROOT = compose_files.ROOT
sys.path.insert(0, str(ROOT / "ops" / "docker"))
import dockerfile  # noqa: E402

ROLES = ("draft", "target", "orchestrator")
SETTINGS: Mapping[str, type[ServiceSettings]] = {
    "draft": DraftSettings,
    "target": TargetSettings,
    "orchestrator": OrchestratorSettings,
}
# Where no service has a default, since it is off unless asked for, the plan names the port.
HTTP, METRICS, CACHE = 8000, 9464, 6379
_OBSERVED = Observability(METRICS, "127.0.0.1:4317")


@dataclass(frozen=True)
class Launched:
    """A process that `presift up` started."""

    name: str
    module: str
    flags: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Sources:
    """All of them."""

    settings: Mapping[str, type[ServiceSettings]]
    image: dockerfile.Dockerfile
    stacks: Mapping[tuple[str, ...], dict[str, Any]]
    variables: Mapping[str, str]
    overlays: Mapping[str, list[dict[str, Any]]]
    prometheus: dict[str, Any]
    queries: Mapping[str, str]
    declared: dict[str, Any]
    launched: Sequence[Launched]
    jobs_of_up: frozenset[str]
    project: dict[str, Any]


def read(root: Path = ROOT, overlays: Mapping[str, list[dict[str, Any]]] | None = None) -> Sources:
    """`overlays` where they are known already: rendering takes a second. Skips where nothing can (see manifests.py)."""
    return Sources(
        settings=SETTINGS,
        image=dockerfile.read(root / "ops/docker/Dockerfile"),
        stacks={files: compose_files.stack(files, root) for files in compose_files.STACKS},
        variables=compose_files.variables(root),
        overlays=overlays or {name: manifests.rendered_folder(root / "ops/k8s" / name) for name in manifests.OVERLAYS},
        prometheus=yaml.safe_load((root / "ops/prometheus/prometheus.yml").read_text()),
        queries=_queries(root),
        declared=yaml.safe_load((root / "ops/telemetry/metrics.yaml").read_text()),
        launched=launched(),
        jobs_of_up=frozenset(each["labels"]["job"] for each in json.loads(_OBSERVED.targets(ROLES))),
        project=tomllib.loads((root / "pyproject.toml").read_text())["project"],
    )


def default_port(settings: Mapping[str, type[ServiceSettings]], role: str) -> int:
    """Where a service listens unless told otherwise."""
    return int(str(settings[role].model_fields["listen"].default).rpartition(":")[2])


def _queries(root: Path) -> dict[str, str]:
    """File -> all the text in which it may name metrics."""
    found = {"ops/prometheus/rules.yml": _expressions(yaml.safe_load((root / "ops/prometheus/rules.yml").read_text()))}
    for file in sorted((root / "ops/grafana/dashboards").glob("*.json")):
        found[f"ops/grafana/dashboards/{file.name}"] = _expressions(json.loads(file.read_text()))
    return found


def _expressions(value: Any) -> str:
    """What stands at `expr`, however deep."""
    if isinstance(value, list):
        return "\n".join(_expressions(each) for each in value)
    if not isinstance(value, dict):
        return ""
    own = [str(value["expr"])] if "expr" in value else []
    return "\n".join([*own, *(_expressions(each) for each in value.values())])


def launched() -> list[Launched]:
    """What `presift up` would start; nothing is started."""
    found: list[Launched] = []

    class NotStarted:
        def __init__(
            self, name: str, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
        ) -> None:
            found.append(Launched(name, module, list(arguments), environment))
            self.name, self.address, self.http_address = name, "127.0.0.1:1", ""

        def wait_ready(self, timeout_s: float) -> str:
            return self.address

        def exit_code(self) -> int | None:
            return 0

        def stop(self, timeout_s: float) -> int:
            return 0

    @contextmanager
    def no_cache() -> Iterator[Any]:
        found.append(Launched("cache", "", [], {}))
        yield type("Cache", (), {"url": "unix:///nowhere"})

    kept = local_stack.ServiceProcess, local_stack.embedded_cache
    local_stack.ServiceProcess, local_stack.embedded_cache = NotStarted, no_cache  # type: ignore[assignment, misc]
    try:
        with TemporaryDirectory() as folder:
            options = StackOptions(
                draft="/d",
                target="/t",
                tokenizer="/t",
                logs=Path(folder),
                http_listen=f"127.0.0.1:{HTTP}",
                observability=_OBSERVED,
            )
            with LocalStack(options, lambda _: None):
                return found
    finally:
        local_stack.ServiceProcess, local_stack.embedded_cache = kept  # type: ignore[misc]


def metrics_in(text: str) -> set[str]:
    """Names of presift's metrics in a query, without what recording rules make (they have colons)."""
    return set(re.findall(r"(?<![\w:])(?:presift|gen_ai|process)_\w+(?![\w:])", text))
