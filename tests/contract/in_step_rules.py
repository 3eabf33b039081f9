"""The rules by which settings, images, compose, Kubernetes, Prometheus and `presift up` are in step.

Each takes all sources and yields a line for whatever does not agree, naming both places.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from presift.cli import app
from presift.rpc.settings import ServiceSettings

from . import manifests
from .stack_sources import CACHE, HTTP, METRICS, ROLES, Launched, Sources, default_port, metrics_in

ONE_SHOTS = {"keys", "models", "certificates"}
OBSERVERS = {"otel-collector", "tempo", "prometheus", "grafana"}
TWINS = {"draft-gpu": "draft", "target-gpu": "target"}


def services(house: Sources) -> Iterator[str]:
    """The same four everywhere."""
    expected = {"cache", *ROLES}
    for files, stack in house.stacks.items():
        named = {TWINS.get(name, name) for name in stack["services"]} - ONE_SHOTS - OBSERVERS
        if named != expected:
            yield f"{files[-1]} has services {sorted(named)}, not {sorted(expected)}"
    for overlay, objects in house.overlays.items():
        named = {each["metadata"]["name"] for each in manifests.workloads(objects)}
        if named != expected:
            yield f"{overlay} has workloads {sorted(named)}, not {sorted(expected)}"
    named = {each.name.partition("-")[0] for each in house.launched}
    if named != expected:
        yield f"`presift up` starts {sorted(named)}, not {sorted(expected)}"


def modules(house: Sources) -> Iterator[str]:
    """An image runs what `presift up` runs."""
    for role in ROLES:
        entry = house.image.command(role, "ENTRYPOINT")
        for each in house.launched:
            if each.name == role and entry != ["python", "-m", each.module]:
                yield f"image {role} runs {entry}, `presift up` {each.module}"


def ports(house: Sources) -> Iterator[str]:
    """Each service is where its settings say by default, and is looked for there."""
    for role in ROLES:
        port = default_port(house.settings, role)
        expected = f"0.0.0.0:{port}"
        for place, found in _places(house, role, "LISTEN"):
            if found != expected:
                yield f"{place}: {role} listens on {found}, its settings say port {port}"
        exposed = house.image.last_of(role, "EXPOSE").split()
        wanted = {str(port), str(METRICS), *([str(HTTP)] if role == "orchestrator" else [])}
        if set(exposed) != wanted:
            yield f"Dockerfile: {role} exposes {exposed}, not {sorted(wanted)}"
        if role == "orchestrator":
            continue
        for place, found in _places(house, "orchestrator", f"{role.upper()}_ADDRESS"):
            if found != f"dns:///{role}:{port}":
                yield f"{place}: the orchestrator looks for {role} at {found}, not dns:///{role}:{port}"
    yield from _published(house)
    yield from _kubernetes_ports(house)


def _published(house: Sources) -> Iterator[str]:
    """Of compose, on the host: the orchestrator's two doors, none of a service that is scaled."""
    wanted = [str(default_port(house.settings, "orchestrator")), str(HTTP)]
    for files, stack in house.stacks.items():
        for name, service in stack["services"].items():
            inside = [str(each).rpartition(":")[2] for each in service.get("ports", [])]
            expected = wanted if name == "orchestrator" else [] if name not in OBSERVERS else inside
            if inside != expected:
                yield f"{files[-1]}: {name} publishes {inside}, not {expected}"


def _kubernetes_ports(house: Sources) -> Iterator[str]:
    for overlay, objects in house.overlays.items():
        for role in (*ROLES, "cache"):
            own = (
                {"redis": CACHE}
                if role == "cache"
                else {"grpc": default_port(house.settings, role), "metrics": METRICS}
            )
            own |= {"http": HTTP} if role == "orchestrator" else {}
            if (found := manifests.ports(manifests.container(objects, role))) != own:
                yield f"{overlay}: {role} has ports {found}, not {own}"
            service = manifests.named(objects, "Service", role)
            for each in service["spec"]["ports"]:
                if each["port"] != own.get(each["name"]):
                    yield f"{overlay}: service {role} has {each['name']} on {each['port']}, not {own.get(each['name'])}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = manifests.container(objects, role).get(probe, {}).get("grpc", {}).get("port")
                if asked is not None and asked != own["grpc"]:
                    yield f"{overlay}: {role}'s {probe} asks port {asked}, not {own['grpc']}"


def _named_ports(house: Sources, role: str) -> dict[str, int]:
    if role == "cache":
        return {"redis": CACHE}
    own = {"grpc": default_port(house.settings, role), "metrics": METRICS}
    return own | ({"http": HTTP} if role == "orchestrator" else {})


def variables(house: Sources) -> Iterator[str]:
    """Every PRESIFT_... is a setting of that role, with a value that it takes."""
    for place, role, known in _environments(house):
        prefix = f"PRESIFT_{role.upper()}_"
        for name in sorted(known):
            own = name.removeprefix(prefix).lower()
            if not name.startswith(prefix):
                yield f"{place}: {name} is no variable of {role}"
            elif own not in house.settings[role].model_fields:
                yield f"{place}: {role} has no setting {own} ({name})"
        values = {name.removeprefix(prefix).lower(): value for name, value in known.items() if name.startswith(prefix)}
        yield from (f"{place}: {role}'s {fault}" for fault in _faults(house.settings[role], values))


def _faults(settings: type[ServiceSettings], values: Mapping[str, str]) -> Iterator[str]:
    given = {"model": "/models/any", **values} if "model" in settings.model_fields else dict(values)
    try:
        settings(_cli_parse_args=[], **{key: value for key, value in given.items() if key in settings.model_fields})
    except ValidationError as error:
        yield from (f"{each['loc'][0]}: {each['msg']}" for each in error.errors(include_input=False))


def flags(house: Sources) -> Iterator[str]:
    """What `presift up` gives its services are settings of theirs."""
    for each in house.launched:
        settings = house.settings.get(each.module.rpartition(".")[2])
        if settings is None:  # the cache, or who is told by `services`
            continue
        fields = settings.model_fields
        for flag in each.flags:
            name = flag.removeprefix("--").removeprefix("no-").partition("=")[0].replace("-", "_")
            if flag.startswith("--") and name not in fields:
                yield f"`presift up` gives {each.name} {flag}, which is no setting of it"
        for variable in _of_presift(each.environment):
            yield from (fault for fault in _unknown(each, variable, fields))


def _unknown(launched: Launched, variable: str, fields: Mapping[str, Any]) -> Iterator[str]:
    prefix = f"PRESIFT_{launched.module.rpartition('.')[2].upper()}_"
    if not variable.startswith(prefix) or variable.removeprefix(prefix).lower() not in fields:
        yield f"`presift up` gives {launched.name} {variable}, which is no variable of it"


def health(house: Sources) -> Iterator[str]:
    """Compose asks as the image does, with certificates where callers need one."""
    for role in ROLES:
        asked = house.image.command(role, "HEALTHCHECK")
        expected = ["python", "-m", "presift.rpc.probe", f"127.0.0.1:{default_port(house.settings, role)}"]
        if asked != expected:
            yield f"Dockerfile: {role}'s HEALTHCHECK is {asked}, not {expected}"
        for files, stack in house.stacks.items():
            for name in (role, *(twin for twin, of in TWINS.items() if of == role)):
                _, *test = stack["services"][name]["healthcheck"]["test"]
                if test[:4] != expected:
                    yield f"{files[-1]}: {name}'s healthcheck is {test[:4]}, not {expected}"
                has_tls = f"PRESIFT_{role.upper()}_TLS_CERT" in stack["services"][name]["environment"]
                if has_tls is not ("--ca" in test):
                    yield f"{files[-1]}: {name}'s healthcheck does not ask as its TLS wants it"


def draining(house: Sources) -> Iterator[str]:
    """Whoever stops a service waits for longer than it drains."""
    for role in ROLES:
        default = float(house.settings[role].model_fields["drain_s"].default)
        for files, stack in house.stacks.items():
            service = stack["services"][role]
            drain_s = float(service["environment"].get(f"PRESIFT_{role.upper()}_DRAIN_S", default))
            if float(service["stop_grace_period"].removesuffix("s")) <= drain_s:
                yield f"{files[-1]}: {role} gets {service['stop_grace_period']} to stop, and drains for {drain_s:g} s"
        for overlay, objects in house.overlays.items():
            pod = manifests.pod_of(manifests.named(objects, "Deployment", role))
            drain_s = float(manifests.setting(objects, role, "drain_s") or default)
            grace_s = pod["terminationGracePeriodSeconds"]
            if grace_s <= drain_s:
                yield f"{overlay}: {role} gets {grace_s} s to stop, and drains for {drain_s:g} s"


def sizes(house: Sources) -> Iterator[str]:
    """On CPUs compose gives draft, target and orchestrator what Kubernetes gives them, where that says something."""
    stack, overlay = house.stacks["compose.yaml",]["services"], house.overlays["overlays/cpu"]
    for role, setting in _SIZES:
        ours = stack[role]["environment"].get(f"PRESIFT_{role}_{setting}".upper())
        theirs = manifests.setting(overlay, role, setting)
        if ours is None or theirs not in (None, str(ours)):
            yield f"compose.yaml gives {role} {setting} {ours}, overlays/cpu {theirs}"
    running = [stack[role]["environment"][f"PRESIFT_{role.upper()}_MAX_RUNNING"] for role in ("target", "orchestrator")]
    if len(set(running)) != 1:
        yield f".env: one target takes {running[0]} requests at once, one orchestrator sends it {running[1]}"


_SIZES = (
    ("draft", "threads"),
    ("target", "threads"),
    ("target", "max_running"),
    ("orchestrator", "max_running"),
    ("orchestrator", "draft_timeout_s"),
    ("orchestrator", "cache_timeout_s"),
)


def images(house: Sources) -> Iterator[str]:
    """One version of ours, one of the cache, one Python; the engine is the one that is pinned."""
    version = house.project["version"]
    if house.variables["PRESIFT_VERSION"] != version:
        yield f".env: PRESIFT_VERSION is {house.variables['PRESIFT_VERSION']}, pyproject.toml says {version}"
    if house.image.arguments["PYTHON_IMAGE"] != house.variables["PYTHON_IMAGE"]:
        yield ".env and Dockerfile have different PYTHON_IMAGE"
    if house.image.arguments["TORCH_INDEX"] != house.variables["TORCH_INDEX"]:
        yield ".env and Dockerfile have different TORCH_INDEX"
    (engine,) = [each for each in house.project["optional-dependencies"]["target"] if each.startswith("sglang==")]
    if house.variables["SGLANG_IMAGE"].rpartition(":v")[2] != engine.removeprefix("sglang=="):
        yield f".env: SGLANG_IMAGE is {house.variables['SGLANG_IMAGE']}, pyproject.toml says {engine}"
    yield from _image_names(house, version)


def _image_names(house: Sources, version: str) -> Iterator[str]:
    for role in ROLES:
        wanted = f"presift-{role}:{version}"
        for name in (role, *(twin for twin, of in TWINS.items() if of == role)):
            found = house.stacks["compose.yaml",]["services"][name]["image"]
            if found.removesuffix("-gpu") != wanted:
                yield f"compose.yaml: {name} is {found}, not {wanted}"
        for overlay, objects in house.overlays.items():
            found = manifests.container(objects, role)["image"]
            if found.removesuffix("-gpu") != wanted:
                yield f"{overlay}: {role} is {found}, not {wanted}"
    for overlay, objects in house.overlays.items():
        if (found := manifests.container(objects, "cache")["image"]) != house.variables["VALKEY_IMAGE"]:
            yield f"{overlay}: the cache is {found}, .env says {house.variables['VALKEY_IMAGE']}"


def users(house: Sources) -> Iterator[str]:
    """Nobody is root, and nobody is somebody else than in the other place: files of volumes are theirs."""
    for role in (*ROLES, "models"):
        if (found := house.image.last_of(role, "USER")) != "10001:10001":
            yield f"Dockerfile: {role} runs as {found}, not 10001:10001"
    for overlay, objects in house.overlays.items():
        for role in (*ROLES, "cache"):
            context = manifests.pod_of(manifests.named(objects, "Deployment", role))["securityContext"]
            if (context["runAsUser"], context["runAsGroup"]) != (10001, 10001):
                yield f"{overlay}: {role} does not run as 10001:10001"


def metrics(house: Sources) -> Iterator[str]:
    """Each service tells them where Prometheus looks for them."""
    wanted = f"0.0.0.0:{METRICS}"
    for files, stack in house.stacks.items():
        watched = any("observability" in file for file in files)
        for name in (*ROLES, *TWINS):
            role = TWINS.get(name, name)
            found = stack["services"][name]["environment"].get(f"PRESIFT_{role.upper()}_METRICS_LISTEN")
            if found != (wanted if watched else None):
                yield f"{files[-1]}: {name} tells metrics on {found}, not {wanted}"
    for overlay, objects in house.overlays.items():
        for role in ROLES:
            if (found := manifests.setting(objects, role, "metrics_listen")) != wanted:
                yield f"{overlay}: {role} tells metrics on {found}, not {wanted}"
    default = inspect.signature(app.up).parameters["metrics_from"].default
    if default != METRICS:
        yield f"`presift up --observability` has metrics from port {default} on, not {METRICS}"
    yield from _jobs(house)


def _jobs(house: Sources) -> Iterator[str]:
    jobs = {each["job_name"]: each for each in house.prometheus["scrape_configs"]}
    for role in ROLES:
        job = jobs.get(f"presift-{role}", {})
        found = [(each["names"], each["port"]) for each in job.get("dns_sd_configs", [])]
        if found != [([role], METRICS)]:
            yield f"prometheus.yml: job presift-{role} looks at {found}, not at {role}:{METRICS}"
        if f"presift-{role}" not in house.jobs_of_up:
            yield f"`presift up --observability` tells Prometheus of {sorted(house.jobs_of_up)}, not of presift-{role}"


def declared(house: Sources) -> Iterator[str]:
    """Rules, dashboards and autoscalers ask for metrics that there are."""
    known = set(house.declared["process"])
    for each in house.declared["metrics"]:
        suffixes = ("_bucket", "_sum", "_count") if each["kind"] == "histogram" else ("",)
        known |= {each["prometheus"] + suffix for suffix in suffixes}
    asked = dict(house.queries)
    for overlay, objects in house.overlays.items():
        scaled = [each for each in objects if each["kind"] == "ScaledObject"]
        asked[overlay] = "\n".join(
            trigger["metadata"].get("query", "") for each in scaled for trigger in each["spec"]["triggers"]
        )
    for place, text in asked.items():
        for name in sorted(metrics_in(text) - known - _labels(house)):
            yield f"{place} asks for {name}, which ops/telemetry/metrics.yaml does not declare"


def _labels(house: Sources) -> set[str]:
    """Attributes as Prometheus calls them: they look like metrics in a query."""
    return {name.replace(".", "_") for name in house.declared["attributes"]}


def _places(house: Sources, role: str, setting: str) -> Iterator[tuple[str, str | None]]:
    """(where, value) of one setting in images, compose and Kubernetes."""
    name = f"PRESIFT_{role.upper()}_{setting}"
    for place, of, known in _environments(house):
        if of == role and (place != "Dockerfile" or name in known or setting == "LISTEN"):
            yield place, known.get(name)


def _environments(house: Sources) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, role, PRESIFT_ variables)"""
    for role in ROLES:
        yield "Dockerfile", role, _of_presift(house.image.environment(role))
        for files, stack in house.stacks.items():
            for name in (role, *(twin for twin, of in TWINS.items() if of == role)):
                own = {key: str(value) for key, value in stack["services"][name]["environment"].items()}
                yield f"{files[-1]} ({name})", role, _of_presift(own)
        for overlay, objects in house.overlays.items():
            yield overlay, role, _of_presift(manifests.settings(objects, role))


def _of_presift(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if re.match("PRESIFT_", name)}


RULES = (services, modules, ports, variables, flags, health, draining, sizes, images, users, metrics, declared)
