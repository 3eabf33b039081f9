"""ops/k8s: every kustomization renders, fits the published schemas and the rules of manifest_rules.py; guards fire."""

import copy
import json
import os
import re
import shutil
from functools import cache, partial
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from presift.draft.settings import DraftSettings
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.target.settings import TargetSettings

from . import manifest_rules as rules
from .manifests import (
    K8S,
    MODELS,
    OVERLAYS,
    ROOT,
    container,
    containers_of,
    named,
    pod_of,
    rendered,
    rendered_folder,
    setting,
    settings,
    workloads,
)

SCHEMAS = {
    each["properties"]["kind"]["const"]: each
    for each in (yaml.safe_load(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.yaml"))
}
# The oldest cluster that knows all that is used (`preStop.sleep`), and the newest that there is a schema of.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
DECLARED = yaml.safe_load((ROOT / "ops/telemetry/metrics.yaml").read_text())
METRICS = {each["prometheus"] for each in DECLARED["metrics"]} | set(DECLARED["process"])
SETTINGS = {"draft": DraftSettings, "target": TargetSettings, "orchestrator": OrchestratorSettings}
FOLDERS = sorted(str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml"))
FULL = [folder for folder in FOLDERS if not folder.startswith(("components", "models/base"))]
RULES = (
    rules.security,
    rules.resources,
    rules.devices,
    rules.probes,
    rules.grace,
    rules.listening,
    rules.addresses,
    rules.references,
    rules.files,
    rules.scaling,
    rules.places,
    partial(rules.queries, declared=METRICS),
)


def check(each):
    """Raise ValidationError, naming the field, for an object that the API would not take."""
    _check(json.dumps(each, sort_keys=True))


@cache
def _check(text):
    """Once for each object: most are the same in every overlay."""
    each = json.loads(text)
    if each["apiVersion"].partition("/")[0] in ("keda.sh", "monitoring.coreos.com"):
        jsonschema.Draft202012Validator(SCHEMAS[each["kind"]]).validate(each)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    return request.param


@pytest.mark.parametrize("folder", FULL)
def test_what_is_rendered_fits_the_schemas(folder):
    objects = rendered(folder)
    assert objects
    for each in objects:
        check(each)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


def test_every_overlay_is_known_here():
    assert {folder for folder in FOLDERS if folder.startswith("overlays/")} == set(OVERLAYS) == set(MODELS)
    assert set(MODELS.values()) == {folder for folder in FOLDERS if folder.startswith("models/")} - {"models/base"}


@pytest.mark.parametrize("component", ["keda", "podmonitor", "alerts", "tracing"])
@pytest.mark.parametrize("to", ["cpu", "gpu"])
def test_each_component_can_be_added_to_an_overlay(component, to, tmp_path):
    """From a folder beside ours, as an operator would."""
    copied = tmp_path / "k8s"
    _copy(K8S, copied)
    mine = copied / "overlays" / "mine"
    mine.mkdir()
    mine.joinpath("kustomization.yaml").write_text(
        f"namespace: presift\nresources: [../{to}]\ncomponents: [../../components/{component}]\n"
    )
    objects = rendered_folder(mine)
    for each in objects:
        check(each)
    assert [fault for rule in RULES if rule is not rules.places for fault in rule(objects)] == []
    if component == "tracing":
        endpoints = {setting(objects, service, "otlp_endpoint") for service in ("draft", "target", "orchestrator")}
        assert endpoints == {"otel-collector.observability.svc:4317"}


def _copy(source, to):
    for path in source.rglob("*.*"):
        if path.is_file():
            (to / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(source)).write_bytes(path.read_bytes())


def test_the_rules_hold(overlay):
    objects, made = rendered(overlay), rendered(MODELS[overlay])
    assert [fault for rule in RULES for fault in rule(objects)] == []
    assert list(rules.model_names(objects, made)) == []
    assert list(rules.one_node(objects, made)) == []
    assert [fault for rule in (rules.security, rules.resources, rules.references) for fault in rule(made)] == []


ALLOWED = {
    ("anyone", "orchestrator", 50051),
    ("anyone", "orchestrator", 8000),
    ("orchestrator", "draft", 50052),
    ("orchestrator", "target", 50053),
    ("orchestrator", "cache", 6379),
    ("monitoring", "draft", 9464),
    ("monitoring", "target", 9464),
    ("monitoring", "orchestrator", 9464),
    # It is somebody, too.
    ("monitoring", "orchestrator", 50051),
    ("monitoring", "orchestrator", 8000),
}


def edges_of(objects):
    """With a pod in the namespace that no policy is for: it may neither call nor be called."""
    stranger = copy.deepcopy(named(objects, "Deployment", "cache"))
    stranger["spec"]["template"]["metadata"]["labels"] = {"app.kubernetes.io/component": "stranger"}
    return rules.edges([*objects, stranger])


def taken(objects, service, monkeypatch):
    """The settings as the service reads them. Raises ValidationError for a value that it would not take."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PRESIFT_")]:
            patch.delenv(name)
        for name, value in settings(objects, service).items():
            patch.setenv(name, value)
        return SETTINGS[service](_cli_parse_args=[])


def test_services_take_their_settings_and_know_their_callers(overlay, monkeypatch):
    """Unknown names are for test_in_step.py, as the services themselves pass over them."""
    objects = rendered(overlay)
    draft, target, orchestrator = (taken(objects, service, monkeypatch) for service in SETTINGS)
    assert draft.drain_s == target.drain_s == orchestrator.drain_s == 60
    assert draft.service_token_file == target.service_token_file == orchestrator.service_token_file is not None
    assert orchestrator.knows_callers and not any(each.insecure for each in (draft, target, orchestrator))


def test_a_value_that_a_service_does_not_take_is_found(monkeypatch):
    objects = rendered("overlays/cpu")
    _setting("draft", "threads", "two")(objects)
    with pytest.raises(ValueError, match="threads"):
        taken(objects, "draft", monkeypatch)


def test_the_network_lets_through_what_is_needed_and_nothing_else(overlay):
    assert edges_of(rendered(overlay)) == ALLOWED


def test_the_namespace_says_restricted():
    labels = named(rendered("namespace"), "Namespace", "presift")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", [folder for folder in FULL if folder != "namespace"])
def test_deleting_one_part_takes_no_other_along(folder):
    """The namespace would take all: secrets, models, services. `kubectl delete -k` deletes what is rendered."""
    objects = rendered(folder)
    assert [each for each in objects if each["kind"] == "Namespace"] == []
    assert ("PersistentVolumeClaim" in {each["kind"] for each in objects}) is ("models" in folder)


@pytest.mark.parametrize("to", OVERLAYS)
def test_the_example_takes_every_image_of_ours_from_the_registry(to, tmp_path):
    copied = tmp_path / "k8s"
    _copy(K8S, copied)
    shutil.copytree(copied / "example", copied / "mine")
    for part, was, becomes in (("services", "overlays/cpu", to), ("models", "models/cpu", MODELS[to])):
        path = copied / "mine" / part / "kustomization.yaml"
        assert f"resources: [../../{was}]" in path.read_text()
        path.write_text(path.read_text().replace(f"[../../{was}]", f"[../../{becomes}]"))
        before, after = (_images(rendered_folder(copied / folder)) for folder in (becomes, f"mine/{part}"))
        assert after == [image if "valkey/" in image else f"registry.example/{image}" for image in before]


def _images(objects):
    return [inside["image"] for each in workloads(objects) for inside in containers_of(each)]


def test_labels_of_an_overlay_reach_what_the_operator_looks_for(tmp_path):
    """The example's lines for kube-prometheus-stack, with their comment signs away."""
    copied = tmp_path / "k8s"
    _copy(K8S, copied)
    path = copied / "example/services/kustomization.yaml"
    text = re.sub(r"(?m)^# (components|labels): ", r"\1: ", path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    objects = rendered_folder(path.parent)
    for each in objects:
        check(each)
    for kind in ("PodMonitor", "PrometheusRule"):
        assert named(objects, kind, "presift")["metadata"]["labels"]["release"] == "kube-prometheus-stack"


@pytest.mark.parametrize("readme", ["ops/README.md", "ops/k8s/README.md"])
def test_readmes_name_folders_that_there_are(readme):
    folders = re.findall(r"-k ops/k8s/([\w/-]+)", (ROOT / readme).read_text())
    assert folders
    assert {folder.replace("mine/", "example/") for folder in folders} <= set(FOLDERS)


def test_no_secret_is_in_the_tree(overlay):
    assert [each for folder in FULL for each in rendered(folder) if each["kind"] == "Secret"] == []
    text = json.dumps(rendered(overlay))
    assert not re.search(r"(?i)(password|api_key|service_token)\W{1,4}=", text)


def test_settings_that_change_roll_the_pods(tmp_path):
    """The names of config maps hold a digest of what is in them."""
    _copy(K8S, tmp_path / "k8s")
    before = rendered("overlays/cpu")
    path = tmp_path / "k8s/overlays/cpu/kustomization.yaml"
    path.write_text(path.read_text().replace("DRAFT_THREADS=2", "DRAFT_THREADS=3"))
    after = rendered_folder(tmp_path / "k8s/overlays/cpu")
    name = "envFrom"
    assert container(before, "draft")[name] != container(after, "draft")[name]
    assert container(before, "target")[name] == container(after, "target")[name]


def _set(path, value):
    """A fault: one field, by its path, has another value; None takes it away."""

    def plant(thing):
        *way, last = path
        for step in way:
            thing = thing[step]
        if value is None:
            del thing[last]
        else:
            thing[last] = value

    return plant


def _in(service, path, value):
    return lambda objects: _set(path, value)(container(objects, service))


def _pod(service, path, value):
    return lambda objects: _set(path, value)(pod_of(named(objects, "Deployment", service)))


def _of(kind, name, path, value):
    return lambda objects: _set(path, value)(named(objects, kind, name))


def _setting(service, name, value):
    def plant(objects):
        source = container(objects, service)["envFrom"][0]["configMapRef"]["name"]
        named(objects, "ConfigMap", source)["data"][f"PRESIFT_{service}_{name}".upper()] = value

    return plant


PLANTED = [
    (rules.security, _pod("draft", ["securityContext", "runAsUser"], 0)),
    (rules.security, _pod("draft", ["securityContext", "runAsNonRoot"], None)),
    (rules.security, _pod("target", ["securityContext", "seccompProfile"], {"type": "Unconfined"})),
    (rules.security, _pod("cache", ["automountServiceAccountToken"], None)),
    (rules.security, _pod("orchestrator", ["enableServiceLinks"], True)),
    (rules.security, _in("cache", ["securityContext", "readOnlyRootFilesystem"], False)),
    (rules.security, _in("target", ["securityContext", "capabilities"], {"add": ["SYS_ADMIN"]})),
    (rules.security, _in("draft", ["securityContext", "allowPrivilegeEscalation"], None)),
    (rules.resources, _in("draft", ["resources", "limits", "memory"], None)),
    (rules.resources, _in("orchestrator", ["resources", "requests", "cpu"], None)),
    (rules.resources, _in("target", ["image"], "registry.example:5000/presift-target")),
    (rules.resources, _in("target", ["image"], "presift-target:latest")),
    (rules.devices, _in("target", ["resources", "limits", "nvidia.com/gpu"], None)),
    (rules.devices, _setting("draft", "device", "cpu")),
    (rules.probes, _in("target", ["livenessProbe", "grpc", "service"], None)),
    (rules.probes, _in("orchestrator", ["readinessProbe", "grpc", "port"], 50052)),
    (rules.probes, _in("draft", ["startupProbe"], None)),
    (rules.probes, _setting("draft", "listen", "0.0.0.0:50055")),
    (rules.probes, _in("cache", ["readinessProbe"], None)),
    (rules.grace, _setting("target", "drain_s", "150")),
    (rules.grace, _in("orchestrator", ["lifecycle", "preStop", "sleep", "seconds"], 30)),
    (rules.grace, _in("draft", ["lifecycle"], None)),
    (rules.listening, _setting("orchestrator", "http_listen", "0.0.0.0:8080")),
    (rules.listening, _in("draft", ["ports"], [{"name": "grpc", "containerPort": 50052}])),
    (rules.listening, _of("Service", "target", ["spec", "ports", 0, "port"], 50052)),
    (rules.listening, _of("Service", "draft", ["spec", "selector"], {"app.kubernetes.io/component": "target"})),
    (rules.addresses, _setting("orchestrator", "draft_address", "dns:///drafts:50052")),
    (rules.addresses, _setting("orchestrator", "target_address", "dns:///target:50052")),
    (rules.addresses, _of("Service", "target", ["spec", "clusterIP"], None)),
    (rules.references, _pod("draft", ["volumes", 1, "secret", "secretName"], "token")),
    (rules.references, _in("draft", ["envFrom", 0, "configMapRef", "name"], "draft")),
    (rules.references, _pod("draft", ["volumes", 0, "persistentVolumeClaim", "claimName"], "model")),
    (rules.files, _setting("draft", "model", "/model/qwen")),
    (rules.files, _setting("orchestrator", "api_keys_file", "/etc/presift/keys.yaml")),
    (rules.files, _in("target", ["volumeMounts", 0, "readOnly"], None)),
    (rules.scaling, _of("Deployment", "draft", ["spec", "replicas"], 2)),
    (rules.scaling, _of("ScaledObject", "target", ["spec", "scaleTargetRef", "name"], "draft")),
    (rules.scaling, _of("PodDisruptionBudget", "target", ["spec", "maxUnavailable"], 0)),
    (rules.scaling, _of("PodDisruptionBudget", "target", ["spec", "selector", "matchLabels"], {"a": "b"})),
    (rules.places, _setting("target", "max_running", "32")),
    (partial(rules.queries, declared=METRICS - {"presift_draft_queue"}), lambda objects: None),
    (
        partial(rules.queries, declared=METRICS),
        _of("ScaledObject", "draft", ["spec", "triggers", 0, "metadata", "query"], "sum(draft_queue)"),
    ),
]


@pytest.mark.parametrize(("rule", "plant"), PLANTED)
def test_a_planted_fault_is_found(rule, plant):
    objects = rendered("overlays/multi-replica")
    assert list(rule(objects)) == [] or rule.__class__ is partial
    plant(objects)
    assert list(rule(objects))


@pytest.mark.parametrize(("service", "name"), [("draft", "model"), ("target", "model"), ("orchestrator", "tokenizer")])
def test_a_model_that_nobody_makes_is_found(service, name):
    objects = rendered("overlays/gpu")
    _setting(service, name, "/models/qwen2.5-7b")(objects)
    assert list(rules.model_names(objects, rendered("models/gpu")))


_AFFINITY = ["affinity", "podAffinity", "requiredDuringSchedulingIgnoredDuringExecution", 0]


@pytest.mark.parametrize(
    "plant",
    [
        _pod("draft", ["affinity"], None),
        _pod("target", [*_AFFINITY, "topologyKey"], "topology.kubernetes.io/zone"),
        # A first one of its own, wherever the others are.
        _pod("orchestrator", [*_AFFINITY, "labelSelector"], {"matchLabels": {rules.COMPONENT: "orchestrator"}}),
        # Beside somebody who is anywhere.
        _pod("draft", [*_AFFINITY, "labelSelector"], {"matchLabels": {rules.COMPONENT: "cache"}}),
    ],
)
def test_a_pod_away_from_its_volume_is_found(plant):
    objects = rendered("overlays/cpu")
    plant(objects)
    assert list(rules.one_node(objects, rendered("models/cpu")))


@pytest.mark.parametrize("name", ["nothing-by-default", "draft", "cache", "metrics", "orchestrator"])
def test_a_network_policy_that_is_missing_is_noticed(name):
    objects = rendered("overlays/cpu")
    objects.remove(named(objects, "NetworkPolicy", name))
    assert edges_of(objects) != ALLOWED


def test_a_network_policy_that_lets_more_through_is_noticed():
    objects = rendered("overlays/cpu")
    named(objects, "NetworkPolicy", "cache")["spec"]["ingress"] = [{}]
    assert edges_of(objects) - ALLOWED == {("anyone", "cache", 6379), ("monitoring", "cache", 6379)}


def test_a_pod_that_may_leave_the_cluster_is_noticed():
    objects = rendered("overlays/cpu")
    named(objects, "NetworkPolicy", "names")["spec"]["egress"].append({"ports": [{"protocol": "TCP", "port": 443}]})
    assert ("draft", "world", 443) in edges_of(objects) - ALLOWED


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "draft", ["spec", "template", "spec", "containers", 0, "readynessProbe"], {}),
        ("Deployment", "draft", ["spec", "template", "spec", "containers", 0, "livenessProbe", "grpc", "port"], "grpc"),
        ("Deployment", "target", ["spec", "selector"], None),
        ("Service", "draft", ["spec", "ports", 0, "number"], 1),
        ("NetworkPolicy", "cache", ["spec", "ingres"], []),
        ("PodDisruptionBudget", "draft", ["spec", "minimum"], 1),
        ("HorizontalPodAutoscaler", "orchestrator", ["spec", "maxReplicas"], None),
        ("ScaledObject", "draft", ["spec", "minReplicas"], 1),
        ("ScaledObject", "draft", ["spec", "triggers", 0, "metadata", "threshold"], 2),
        ("ScaledObject", "target", ["spec", "scaleTargetRef", "name"], None),
        ("PodMonitor", "presift", ["spec", "podMetricsEndpoints", 0, "port"], 9464),
        ("PodMonitor", "presift", ["spec", "endpoints"], []),
        ("PrometheusRule", "presift", ["spec", "groups", 1, "rules", 0, "record"], "both"),
        ("PrometheusRule", "presift", ["spec", "groups", 1, "rules", 0, "annotation"], {}),
        ("PrometheusRule", "presift", ["spec", "groups"], None),
    ],
)
def test_a_field_that_the_api_does_not_know_is_found(kind, name, path, value):
    each = copy.deepcopy(named(rendered("overlays/multi-replica"), kind, name))
    check(each)
    _set(path, value)(each)
    with pytest.raises(jsonschema.ValidationError):
        check(each)


def test_every_pod_is_placed_by_no_default(overlay):
    """Namespaces come from kustomize, so that nothing is left in `default`."""
    for each in rendered(overlay):
        assert each["metadata"]["namespace"] == "presift"
    assert len(workloads(rendered(overlay))) == 4
