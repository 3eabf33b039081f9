"""What has to hold for ops/k8s beyond the published schemas: rules take an overlay's objects and tell the faults."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .manifests import (
    COMPONENT,
    ROOT,
    SERVICES,
    Object,
    autoscaled,
    container,
    containers_of,
    labels_of,
    named,
    of_kind,
    pod_of,
    ports,
    selects,
    setting,
    settings,
    workloads,
)

_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
Labels = dict[str, str]

_METRIC = re.compile(r"\b(?:presift|gen_ai)_\w+")


def security(objects: list[Object]) -> Iterator[str]:
    """No root, nothing to write on, no way to more rights, no token of the cluster's."""
    for each in workloads(objects):
        name, pod = each["metadata"]["name"], pod_of(each)
        had = pod.get("securityContext", {})
        yield from (f"{name}: securityContext.{key}" for key, value in _POD_SECURITY.items() if had.get(key) != value)
        off = ("automountServiceAccountToken", "enableServiceLinks")
        yield from (f"{name}: {key}" for key in off if pod.get(key) is not False)
        for inside in containers_of(each):
            had = inside.get("securityContext", {})
            wrong = [key for key, value in _CONTAINER_SECURITY.items() if had.get(key) != value]
            yield from (f"{name}/{inside['name']}: securityContext.{key}" for key in wrong)


def resources(objects: list[Object]) -> Iterator[str]:
    """What a scheduler and an autoscaler need: requests, a limit of memory, and images that stay what they are."""
    for each in workloads(objects):
        for inside in containers_of(each):
            name, asked = f"{each['metadata']['name']}/{inside['name']}", inside.get("resources", {})
            if not {"cpu", "memory"} <= asked.get("requests", {}).keys():
                yield f"{name}: requests"
            if "memory" not in asked.get("limits", {}):
                yield f"{name}: limits.memory"
            tag = inside["image"].rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest"):
                yield f"{name}: image {inside['image']}"


def devices(objects: list[Object]) -> Iterator[str]:
    """A GPU is asked for exactly where the settings use one; on a CPU, threads are the cores that are asked for."""
    for service in ("draft", "target"):
        asked = container(objects, service)["resources"]
        gpus, device = asked["limits"].get("nvidia.com/gpu"), setting(objects, service, "device")
        if (device == "cuda") is not (gpus is not None):
            yield f"{service}: device {device}, GPUs {gpus}"
        if device == "cpu" and setting(objects, service, "threads") != asked["requests"]["cpu"]:
            yield f"{service}: {setting(objects, service, 'threads')} threads on {asked['requests']['cpu']} cores"


def probes(objects: list[Object]) -> Iterator[str]:
    """Health is asked by gRPC where the service listens; only what makes a process useless restarts it."""
    for service in SERVICES:
        inside = container(objects, service)
        port = int((setting(objects, service, "listen") or ":0").rpartition(":")[2])
        for kind, asked in (("livenessProbe", "liveness"), ("readinessProbe", "")):
            probe = inside.get(kind, {}).get("grpc", {})
            if (probe.get("port"), probe.get("service", "")) != (port, asked):
                yield f"{service}: {kind} asks {probe}, not port {port} for {asked or 'all'}"
        if inside.get("startupProbe", {}).get("grpc", {}).get("port") != port:
            yield f"{service}: startupProbe"
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind not in container(objects, "cache"):
            yield f"cache: {kind}"


def grace(objects: list[Object]) -> Iterator[str]:
    """A pod works on until it is known that it leaves, and gets more time to end than for that and to drain."""
    for service in SERVICES:
        before = container(objects, service).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = float(setting(objects, service, "drain_s") or 0) + before
        if before < 5:
            yield f"{service}: its port is closed {before} s after it was decided"
        given = pod_of(named(objects, "Deployment", service))["terminationGracePeriodSeconds"]
        if given < needed + 5:
            yield f"{service}: {given} s of grace, {needed:g} s are needed and some to spare"


def listening(objects: list[Object]) -> Iterator[str]:
    """Container ports are those that the settings open, and services lead to them."""
    for service in SERVICES:
        opened = {
            {"listen": "grpc", "http_listen": "http", "metrics_listen": "metrics"}[key]: int(value.rpartition(":")[2])
            for key in ("listen", "http_listen", "metrics_listen")
            if (value := setting(objects, service, key))
        }
        if (there := ports(container(objects, service))) != opened:
            yield f"{service}: container ports {there}, settings {opened}"
    for each in of_kind(objects, "Service"):
        name = each["metadata"]["name"]
        selector = {"matchLabels": each["spec"]["selector"]}
        found = [one for one in of_kind(objects, "Deployment") if selects(selector, labels_of(one))]
        if (led_to := [one["metadata"]["name"] for one in found]) != [name]:
            yield f"service {name}: leads to {led_to}"
            continue
        inside = ports(container(objects, name))
        for port in each["spec"]["ports"]:
            if inside.get(port["targetPort"]) != port["port"]:
                yield f"service {name}: port {port['port']} leads to {port['targetPort']}"


def addresses(objects: list[Object]) -> Iterator[str]:
    """The orchestrator dials services that there are, and sees every replica of draft and target."""
    for service in ("draft", "target"):
        address = setting(objects, "orchestrator", f"{service}_address") or ""
        spec = named(objects, "Service", service)["spec"]
        if address != f"dns:///{service}:{spec['ports'][0]['port']}":
            yield f"orchestrator: {service}_address {address}"
        if spec.get("clusterIP") != "None":
            yield f"service {service}: not headless"


def references(objects: list[Object]) -> Iterator[str]:
    """Every config map and claim that a pod names is there; every secret is one that the README makes."""
    readme = (ROOT / "ops" / "k8s" / "README.md").read_text()
    secrets = set(re.findall(r"create secret generic ([\w-]+)", readme))
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    for each in workloads(objects):
        name, text = each["metadata"]["name"], list(_named_things(each))
        for kind, thing in text:
            known = {"map": maps, "secret": secrets, "claim": {"models"}}[kind]
            if thing not in known:
                yield f"{name}: {kind} {thing}"


def _named_things(workload: Object) -> Iterator[tuple[str, str]]:
    kinds = {
        "configMap": ("map", "name"),
        "secret": ("secret", "secretName"),
        "persistentVolumeClaim": ("claim", "claimName"),
    }
    for volume in pod_of(workload).get("volumes", []):
        yield from ((kind, volume[key][name]) for key, (kind, name) in kinds.items() if key in volume)
    for inside in containers_of(workload):
        yield from (("map", source["configMapRef"]["name"]) for source in inside.get("envFrom", []))
        values = [each.get("valueFrom", {}) for each in inside.get("env", [])]
        yield from (("secret", value["secretKeyRef"]["name"]) for value in values if "secretKeyRef" in value)


def files(objects: list[Object]) -> Iterator[str]:
    """Every file and folder that a setting names lies on a mounted volume, and models are mounted read-only."""
    for service in SERVICES:
        mounts = {each["mountPath"]: each for each in container(objects, service)["volumeMounts"]}
        for key, value in settings(objects, service).items():
            if value.startswith("/") and not any(value == path or value.startswith(f"{path}/") for path in mounts):
                yield f"{service}: {key} is {value}, and nothing is mounted there"
        if mounts.get("/models", {}).get("readOnly") is not True:
            yield f"{service}: /models is not mounted read-only"


def model_names(objects: list[Object], made: list[Object]) -> Iterator[str]:
    """The models that are served are those that the overlay's job makes; the tokenizer is the target's."""
    words = " ".join(" ".join(inside["command"]) for inside in containers_of(of_kind(made, "Job")[0]))
    folders = {setting(objects, service, "model") or "" for service in ("draft", "target")}
    for folder in folders:
        if not re.search(rf"(^|[ /]){re.escape(folder.removeprefix('/models/'))}( |$)", words):
            yield f"{folder} is made by no job"
    if setting(objects, "orchestrator", "tokenizer") != setting(objects, "target", "model"):
        yield "the orchestrator's tokenizer is not the target's"


def one_node(objects: list[Object], made: list[Object]) -> Iterator[str]:
    """Where the models' volume is on one node at a time, all who use it are there: each goes only where another is, and
    whoever may be the first looks for all of them, so that no second node has a first."""
    if named(made, "PersistentVolumeClaim", "models")["spec"]["accessModes"] != ["ReadWriteOnce"]:
        return
    users = [each for each in workloads([*objects, *made]) if ("claim", "models") in _named_things(each)]
    names = {each["metadata"]["name"] for each in users}
    for each in users:
        name, beside = each["metadata"]["name"], _beside(each, workloads([*objects, *made]))
        if not beside or not beside <= names or (name in beside and beside != names):
            yield f"{name}: is kept beside {sorted(beside)}, the volume is used by {sorted(names)}"


def _beside(workload: Object, among: list[Object]) -> set[str]:
    """The workloads whose node it must be on."""
    affinity = pod_of(workload).get("affinity", {}).get("podAffinity", {})
    for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []):
        if term["topologyKey"] == "kubernetes.io/hostname":
            return {each["metadata"]["name"] for each in among if selects(term["labelSelector"], labels_of(each))}
    return set()


def scaling(objects: list[Object]) -> Iterator[str]:
    """One autoscaler a Deployment, with nothing that pulls against it, and a PDB that holds up no drain."""
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    scaled = [each["spec"]["scaleTargetRef"]["name"] for each in scalers]
    for name in sorted(set(scaled)):
        if scaled.count(name) > 1:
            yield f"{name}: {scaled.count(name)} autoscalers"
        if "replicas" in named(objects, "Deployment", name)["spec"]:
            yield f"{name}: replicas are set beside an autoscaler"
    for service in SERVICES:
        budgets = [
            each
            for each in of_kind(objects, "PodDisruptionBudget")
            if selects(each["spec"]["selector"], labels_of(named(objects, "Deployment", service)))
        ]
        if [each["spec"].get("maxUnavailable") for each in budgets] != [1]:
            yield f"{service}: disruption budgets {budgets}"


def places(objects: list[Object]) -> Iterator[str]:
    """The orchestrators take into work what the targets take at once, at the fewest replicas of both."""
    least = {name: number for name, (number, _) in autoscaled(objects).items()}
    taken = int(setting(objects, "target", "max_running") or 16) * least.get("target", 1)
    asked = int(setting(objects, "orchestrator", "max_running") or 64) * least.get("orchestrator", 1)
    if taken != asked:
        yield f"orchestrators send {asked} at once, targets take {taken}"


def queries(objects: list[Object], declared: set[str]) -> Iterator[str]:
    """Autoscalers ask for metrics that there are."""
    for each in of_kind(objects, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            asked = set(_METRIC.findall(trigger["metadata"]["query"]))
            if unknown := asked - declared or (not asked and {"no metric"}):
                yield f"{each['metadata']['name']}: {', '.join(sorted(unknown))}"


def edges(objects: list[Object]) -> set[tuple[str, str, int]]:
    """(from, to, port) of every connection that the NetworkPolicies let through: among the pods of presift, from any
    other pod of the cluster ("anyone") and from the namespace `monitoring`, and out to the "world" by HTTPS."""
    pods = {labels_of(each)[COMPONENT]: each for each in of_kind(objects, "Deployment")}
    policies = of_kind(objects, "NetworkPolicy")
    found = set()
    for to, workload in pods.items():
        for port, number in ports(pod_of(workload)["containers"][0]).items():
            for source in ("anyone", "monitoring", *pods):
                sender = labels_of(pods[source]) if source in pods else None
                if _let_in(policies, labels_of(workload), port, source, sender) and (
                    sender is None or _let_out(policies, sender, port, labels_of(workload))
                ):
                    found.add((source, to, number))
        if _let_out(policies, labels_of(workload), 443, {}):
            found.add((to, "world", 443))
    return found


def _let_in(policies: list[Object], labels: Labels, port: str, source: str, sender: Labels | None) -> bool:
    holding = [each["spec"] for each in policies if _binds(each, labels, "Ingress")]
    rules = [rule for spec in holding for rule in spec.get("ingress", [])]
    return not holding or any(_port(rule, port) and _peer(rule.get("from"), source, sender) for rule in rules)


def _let_out(policies: list[Object], labels: Labels, port: str | int, receiver: Labels) -> bool:
    holding = [each["spec"] for each in policies if _binds(each, labels, "Egress")]
    rules = [rule for spec in holding for rule in spec.get("egress", [])]
    return not holding or any(_port(rule, port) and _peer(rule.get("to"), "presift", receiver) for rule in rules)


def _binds(policy: Object, labels: Labels, way: str) -> bool:
    return way in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], labels)


def _port(rule: Object, port: str | int) -> bool:
    return "ports" not in rule or any(each["port"] == port for each in rule["ports"])


def _peer(peers: list[Object] | None, namespace: str, labels: Labels | None) -> bool:
    if peers is None:
        return True
    for peer in peers:
        if "namespaceSelector" in peer:
            if selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
                return True
        elif labels is not None and selects(peer.get("podSelector", {"matchLabels": {"": "none"}}), labels):
            return True
    return False
