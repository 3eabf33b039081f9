"""What ops/k8s becomes: every kustomization as kustomize renders it, and what its objects say of presift's services."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "ops" / "k8s"
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/multi-replica")
MODELS = {"overlays/cpu": "models/cpu", "overlays/gpu": "models/gpu", "overlays/multi-replica": "models/gpu"}
SERVICES = ("draft", "target", "orchestrator")
COMPONENT = "app.kubernetes.io/component"

Object = dict[str, Any]


def rendered(folder: str) -> list[Object]:
    """The objects of a kustomization below ops/k8s, fresh ones at each call. Skips where nothing can render it, but not
    in CI, whose machine has kubectl."""
    return [each for each in yaml.safe_load_all(_render(K8S / folder)) if each]


def rendered_folder(folder: Path) -> list[Object]:
    """Likewise of any folder."""
    return [each for each in yaml.safe_load_all(_render(folder)) if each]


@cache
def _render(folder: Path) -> str:
    done = subprocess.run([*_renderer(), str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _renderer() -> list[str]:
    for name, command in (("kustomize", ["kustomize", "build"]), ("kubectl", ["kubectl", "kustomize"])):
        if shutil.which(name):
            return command
    told = "neither kubectl nor kustomize is on PATH: ops/k8s is NOT CHECKED"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def workloads(objects: list[Object]) -> list[Object]:
    return of_kind(objects, "Deployment", "StatefulSet", "Job")


def pod_of(workload: Object) -> Object:
    """Its pods' spec."""
    return workload["spec"]["template"]["spec"]


def labels_of(workload: Object) -> dict[str, str]:
    """Its pods' labels."""
    return workload["spec"]["template"]["metadata"]["labels"]


def containers_of(workload: Object) -> list[Object]:
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def container(objects: list[Object], service: str) -> Object:
    """The container of a service."""
    (found,) = pod_of(named(objects, "Deployment", service))["containers"]
    return found


def settings(objects: list[Object], service: str) -> dict[str, str]:
    """The variables that a service's container gets: of its config maps, then its own."""
    found: dict[str, str] = {}
    inside = container(objects, service)
    for source in inside.get("envFrom", []):
        found |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {each["name"]: each["value"] for each in inside.get("env", []) if "value" in each}


def setting(objects: list[Object], service: str, name: str) -> str | None:
    """One of presift's own: `setting(..., "draft", "listen")` is PRESIFT_DRAFT_LISTEN."""
    return settings(objects, service).get(f"PRESIFT_{service}_{name}".upper())


def ports(inside: Object) -> dict[str, int]:
    """Name -> number of a container's ports."""
    return {each["name"]: each["containerPort"] for each in inside.get("ports", [])}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector, of either form, takes pods of these labels; an empty one takes all."""
    if not all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for term in selector.get("matchExpressions", []):
        assert term["operator"] == "In", "no other operator is used in ops/k8s"
        if labels.get(term["key"]) not in term["values"]:
            return False
    return True


def autoscaled(objects: list[Object]) -> dict[str, tuple[int, int]]:
    """Deployment -> least and most replicas, of those that an autoscaler scales."""
    found = {}
    for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        spec, suffix = each["spec"], "s" if each["kind"] == "HorizontalPodAutoscaler" else "Count"
        found[spec["scaleTargetRef"]["name"]] = (spec[f"minReplica{suffix}"], spec[f"maxReplica{suffix}"])
    return found
