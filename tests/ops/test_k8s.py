"""ops/k8s: every kustomization renders and fits the published schemas; ports, settings, images and rights are right."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from . import sources
from .promql import asked
from .sources import K8S, OPS, PORTS, ROLES, get, put, rendered, variable

FOLDERS = sorted(str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml"))
# The folder of the models' job for each overlay.
MODELS = {each: "models/cpu" if each == "overlays/cpu" else "models/gpu" for each in FOLDERS if "overlays/" in each}
FULL = [folder for folder in FOLDERS if not folder.startswith(("components", "models/base"))]
POD, LABEL = "spec template spec", "app.kubernetes.io/component"
# The operators' own kinds; kubernetes-validate knows Kubernetes' alone.
SCHEMAS = yaml.safe_load(Path(__file__).with_name("operators.yaml").read_text())
# The oldest version that knows every field in use (`preStop.sleep`), and the newest that has a schema.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def of_kind(objects, *kinds):
    return [each for each in objects if each["kind"] in kinds]


def by_name(objects):
    """KIND/NAME -> object."""
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


def pod(objects, name):
    return get(by_name(objects)[f"Deployment/{name}"], POD)


def containers(workload):
    return [*get(workload, POD).get("initContainers", []), *get(workload, POD)["containers"]]


def config_map(objects, role):
    """All variables of a service are in its config map."""
    (source,) = pod(objects, role)["containers"][0]["envFrom"]
    return by_name(objects)[f"ConfigMap/{source['configMapRef']['name']}"]["data"]


def setting(objects, role, name):
    return config_map(objects, role).get(variable(role, name))


def fields(objects):
    """(object, path, value) of all fields that have one right value."""
    user = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for name, each in by_name(of_kind(objects, "Deployment", "Job")).items():
        yield from ((name, f"{POD} securityContext {key}", value) for key, value in user.items())
        yield from ((name, f"{POD} {key}", False) for key in ("automountServiceAccountToken", "enableServiceLinks"))
        for kind in ("initContainers", "containers"):
            for number in range(len(get(each, POD).get(kind, []))):
                yield name, f"{POD} {kind} {number} securityContext", rights
    yield "NetworkPolicy/nothing-by-default", "spec", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for role in ROLES:
        yield from _fields_of(role, setting(objects, role, "device"), setting(objects, role, "threads"))
    ports = {"draft": ["grpc"], "target": ["grpc"], "orchestrator": ["grpc", "http"], "cache": ["redis"]}
    numbers = {"http": sources.HTTP_PORT, "redis": sources.CACHE_PORT, "metrics": sources.METRICS_PORT}
    for role, names in ports.items():
        inside = [*names, *(["metrics"] if role in ROLES else [])]
        opened = [{"name": name, "containerPort": numbers.get(name, PORTS.get(role))} for name in inside]
        yield f"Deployment/{role}", f"{POD} containers 0 ports", opened
        yield f"Service/{role}", f"spec selector {LABEL}", role
        for place, name in enumerate(names):
            yield f"Service/{role}", f"spec ports {place} port", numbers.get(name, PORTS.get(role))
            yield f"Service/{role}", f"spec ports {place} targetPort", name
    yield "Deployment/cache", f"{POD} containers 0 image", sources.env_file()["VALKEY_IMAGE"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield "Deployment/cache", f"{POD} containers 0 {probe} exec command", ["valkey-cli", "ping"]


def _fields_of(role, device, threads):
    """Of a service of presift, on that device, with so many threads."""
    values = {"image": f"presift-{role}:{sources.PROJECT['version']}" + ("-gpu" if device == "cuda" else "")}
    values |= {"startupProbe grpc port": PORTS[role], "readinessProbe grpc": {"port": PORTS[role]}}
    # Restarted only if the process hangs, not while its model or target is missing.
    values |= {"livenessProbe grpc": {"port": PORTS[role], "service": "liveness"}}
    values |= {"volumeMounts 0 mountPath": "/models", "volumeMounts 0 readOnly": True}
    values |= {"resources limits nvidia.com/gpu": "1"} if device == "cuda" else {}
    values |= {"resources requests cpu": threads} if device == "cpu" else {}
    yield from ((f"Deployment/{role}", f"{POD} containers 0 {path}", value) for path, value in values.items())
    yield f"PodDisruptionBudget/{role}", "spec maxUnavailable", 1
    yield f"PodDisruptionBudget/{role}", f"spec selector matchLabels {LABEL}", role
    if role != "orchestrator":
        yield f"Service/{role}", "spec clusterIP", "None"  # headless, so that DNS shows each replica


def settings(objects):
    """Variables are settings with valid values, the files that they name are mounted, and a drain has enough time."""
    for role in ROLES:
        known, inside = config_map(objects, role), pod(objects, role)["containers"][0]
        yield from sources.environment_faults(role, known)
        mounts = {each["mountPath"] for each in inside["volumeMounts"]}
        for name, value in known.items():
            if value.startswith("/") and not any(f"{value}/".startswith(f"{path}/") for path in mounts):
                yield f"{role}: {name} is {value}, where nothing is mounted"
        # The port stays open until other pods have seen that this one is leaving.
        sleep_s = get(inside, "lifecycle preStop sleep seconds") or 0
        needed = sleep_s + sources.stop_s(role, known) + 5
        if sleep_s < 5 or pod(objects, role)["terminationGracePeriodSeconds"] < needed:
            yield f"{role}: sleeps {sleep_s} s and needs {needed} s to stop"


def resources(objects):
    """Every container has requests and a limit of memory, and an image with a tag; presift's are built by whoever runs
    them, all others have a digest."""
    for name, each in by_name(of_kind(objects, "Deployment", "Job")).items():
        for inside in containers(each):
            for path in ("requests cpu", "requests memory", "limits memory"):
                if get(inside, f"resources {path}") is None:
                    yield f"{name}: {inside['name']} has no {path}"
            if inside["image"].rpartition("/")[2].partition(":")[2] in ("", "latest"):
                yield f"{name}: image {inside['image']}"
            if not sources.is_own_image(inside["image"]) and not sources.has_digest(inside["image"]):
                yield f"{name}: image {inside['image']} has no digest"


def references(objects):
    """Config maps and claims exist; secrets are those that the README creates."""
    secrets = set(re.findall(r"create secret generic ([\w-]+)", (K8S / "README.md").read_text()))
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    exist = {"secret secretName": secrets, "persistentVolumeClaim claimName": {"models"}, "configMap name": maps}
    for name, each in by_name(of_kind(objects, "Deployment")).items():
        named = [(get(volume, path), known) for volume in get(each, f"{POD} volumes") for path, known in exist.items()]
        named += [(source["configMapRef"]["name"], maps) for source in containers(each)[0].get("envFrom", [])]
        yield from (f"{name}: {thing} does not exist" for thing, known in named if thing not in {None, *known})


def scaling(objects):
    """One autoscaler for a Deployment, on declared metrics; orchestrators send what the targets run."""
    scalers = [each["spec"] for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")]
    names = [each["scaleTargetRef"]["name"] for each in scalers]
    fixed = {each["metadata"]["name"] for each in of_kind(objects, "Deployment") if "replicas" in each["spec"]}
    if len(names) != len(set(names)) or fixed & set(names):
        yield f"{names}: an autoscaler competes with another, or with `replicas`"
    metrics = {each["prometheus"] for each in sources.DECLARED["metrics"]}
    for trigger in (trigger for each in scalers for trigger in each.get("triggers", [])):
        wanted = {name for name, _ in asked(trigger["metadata"]["query"]).selectors}
        if not wanted or wanted - metrics:
            yield f"an autoscaler asks for {wanted}"
    least = {each["scaleTargetRef"]["name"]: each.get("minReplicas", each.get("minReplicaCount")) for each in scalers}
    room = [int(setting(objects, role, "max_running")) * least.get(role, 1) for role in ("target", "orchestrator")]
    if room[0] != room[1]:
        yield f"targets run {room[0]} requests at once, orchestrators send {room[1]}"


AFFINITY = "affinity podAffinity requiredDuringSchedulingIgnoredDuringExecution 0"
ALL_ROLES = "draft target orchestrator"
ALLOWED = {
    ("in", "orchestrator", "the cluster", "grpc"),
    ("in", "orchestrator", "the cluster", "http"),
    ("in", "draft", "orchestrator", "grpc"),
    ("in", "target", "orchestrator", "grpc"),
    ("in", "cache", "orchestrator", "redis"),
    ("in", ALL_ROLES, "monitoring", "metrics"),
    ("out", "orchestrator", "draft", "grpc"),
    ("out", "orchestrator", "target", "grpc"),
    ("out", "orchestrator", "cache", "redis"),
    ("out", "all", "kube-system", 53),
    ("out", "all", "169.254.20.10/32", 53),
}


def network(objects):
    """What the NetworkPolicies allow is ALLOWED."""
    found = set()
    for spec in (each["spec"] for each in of_kind(objects, "NetworkPolicy")):
        for way, key, peers in (("in", "ingress", "from"), ("out", "egress", "to")):
            rules = [(rule.get("ports", [{"port": "any"}]), rule.get(peers, [{}])) for rule in spec.get(key, [])]
            edges = [(port["port"], peer) for ports, peers in rules for port in ports for peer in peers]
            found |= {(way, _selected(spec["podSelector"]), _peer(peer), port) for port, peer in edges}
    yield from (f"not allowed, or missing: {edge}" for edge in found ^ ALLOWED)


def _peer(peer):
    """A namespace, the cluster, a range of addresses, or components. Raises for what no policy here uses, such as both
    at once."""
    if not peer:
        return "anyone"
    ((kind, value),) = peer.items()
    if kind == "namespaceSelector":
        return value["matchLabels"]["kubernetes.io/metadata.name"] if value else "the cluster"
    return value["cidr"] if kind == "ipBlock" else _selected(value)


def _selected(selector):
    terms = [term["values"] for term in selector.get("matchExpressions", []) if term["key"] == LABEL]
    return " ".join(*terms) if terms else selector.get("matchLabels", {}).get(LABEL, "all")


def models(objects, made):
    """The job fetches what is served, and whoever uses a volume of one node runs on that node."""
    every, words = by_name([*objects, *made]), set()
    for each in containers(every["Job/models"]):
        words |= {word.rpartition("/")[2] for word in each["command"]}
    served = [setting(objects, role, "model") for role in ("draft", "target")]
    yield from (f"no job fetches {path}" for path in served if path.rpartition("/")[2] not in words)
    if setting(objects, "orchestrator", "tokenizer") != served[1]:
        yield "the orchestrator's tokenizer is not the target's"
    if every["PersistentVolumeClaim/models"]["spec"]["accessModes"] == ["ReadWriteOnce"]:
        # The job and the target may be the first on their node; draft and orchestrator follow the target.
        for name in ("Job/models", *(f"Deployment/{role}" for role in ROLES)):
            beside = "target" if name.endswith(("draft", "orchestrator")) else f"models {ALL_ROLES}"
            term = get(every[name], f"{POD} {AFFINITY}") or {}
            if term.get("topologyKey") != "kubernetes.io/hostname" or _selected(term["labelSelector"]) != beside:
                yield f"{name}: is not kept on one node with {beside}"


def wrong_fields(objects):
    """`fields`, as a rule."""
    yield from sources.wrong(by_name(objects), fields(objects))


RULES = (wrong_fields, settings, resources, references, scaling, network)


def check(each):
    """Raise ValidationError, naming the field, for an object that the API would refuse."""
    _check(json.dumps(each, sort_keys=True))


@cache
def _check(text):
    each = json.loads(text)
    if each["kind"] in SCHEMAS:
        jsonschema.Draft202012Validator(SCHEMAS[each["kind"]]).validate(each)
    elif each["kind"] != "PrometheusRule":
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)
    if each["kind"] == "ScaledObject":
        behavior = each["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        spec = {"scaleTargetRef": {"kind": "Deployment", "name": "any"}, "maxReplicas": 1, "behavior": behavior}
        _check(json.dumps({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "spec": spec}))


@pytest.mark.parametrize("folder", FULL)
def test_what_is_rendered_fits_the_schemas(folder):
    """It has no Secret, leaves nothing in `default`, and `kubectl delete -k` of one part deletes no other."""
    objects = rendered(folder)
    for each in objects:
        check(each)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    kinds = {kind for kind, _ in names}
    assert names and len(names) == len(set(names)) and "Secret" not in kinds
    assert ("Namespace" in kinds) is (folder == "namespace")
    assert ("PersistentVolumeClaim" in kinds) is ("models" in folder)
    if folder == "namespace":
        assert objects[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    else:
        assert {each["metadata"]["namespace"] for each in objects} == {"presift"}


@pytest.mark.parametrize("overlay", MODELS)
def test_an_overlay_is_right(overlay):
    objects, made = rendered(overlay), rendered(MODELS[overlay])
    assert [fault for rule in RULES for fault in rule(objects)] == []
    assert by_name(of_kind(objects, "Deployment")).keys() == {f"Deployment/{each}" for each in (*ROLES, "cache")}
    assert [*models(objects, made), *resources(made), *wrong_fields([*objects, *made])] == []


def test_compose_has_the_same_sizes():
    """What compose.yaml and overlays/cpu both set is the same, but for paths."""
    objects, services = rendered("overlays/cpu"), sources.config()["services"]
    for role in ROLES:
        here, there = config_map(objects, role), services[role]["environment"]
        shared = {name for name in here.keys() & there.keys() if not name.endswith("_FILE")}
        assert {name: here[name] for name in shared} == {name: there[name] for name in shared}
        assert variable(role, "threads" if role != "orchestrator" else "max_running") in shared


@pytest.mark.parametrize("role", ["draft", "target"])
def test_compose_gives_a_model_the_same_time_to_load(role):
    compose = yaml.safe_load((sources.ROOT / sources.BASE).read_text())[f"x-{role}"]["healthcheck"]["start_period"]
    for overlay in MODELS:
        probe = pod(rendered(overlay), role)["containers"][0]["startupProbe"]
        assert compose == f"{probe['periodSeconds'] * probe['failureThreshold'] // 60}m"


def test_compose_gives_the_cache_the_same_time_to_start():
    compose = yaml.safe_load((sources.ROOT / sources.BASE).read_text())["services"]["cache"]["healthcheck"]
    probe = pod(rendered("overlays/cpu"), "cache")["containers"][0]["startupProbe"]
    assert compose["start_period"] == f"{probe['periodSeconds'] * probe['failureThreshold']}s"


@pytest.fixture
def mine(tmp_path):
    """A copy of ops/k8s, for an operator's own overlays."""
    return Path(shutil.copytree(K8S, tmp_path / "k8s"))


@pytest.mark.parametrize("component", ["keda", "podmonitor", "alerts", "tracing"])
@pytest.mark.parametrize("to", ["cpu", "gpu"])
def test_each_component_can_be_added_to_an_overlay(component, to, mine):
    (mine / "overlays/mine").mkdir()
    text = f"namespace: presift\nresources: [../{to}]\ncomponents: [../../components/{component}]\n"
    (mine / "overlays/mine/kustomization.yaml").write_text(text)
    objects = rendered(mine / "overlays/mine")
    for each in objects:
        check(each)
    # `scaling` holds for whole overlays: with KEDA alone there are two targets and one orchestrator.
    faults = [fault for rule in RULES if rule is not scaling for fault in rule(objects)]
    if component == "tracing":
        ends = {setting(objects, role, "otlp_endpoint") for role in ROLES}
        assert ends == {"otel-collector.observability.svc:4317"} and "'observability', 4317" in faults.pop()
    assert faults == []


@pytest.mark.parametrize("to", MODELS)
def test_the_example_takes_presifts_images_from_a_registry(to, mine):
    for part, was, becomes in (("services", "overlays/cpu", to), ("models", "models/cpu", MODELS[to])):
        path = mine / "example" / part / "kustomization.yaml"
        path.write_text(path.read_text().replace(f"[../../{was}]", f"[../../{becomes}]"))
        after = [image if "valkey/" in image else f"registry.example/{image}" for image in _images(rendered(becomes))]
        assert _images(rendered(path.parent)) == after


def _images(objects):
    return [inside["image"] for each in of_kind(objects, "Deployment", "Job") for inside in containers(each)]


def test_the_examples_lines_for_the_prometheus_operator_set_its_label(mine):
    path = mine / "example/services/kustomization.yaml"
    path.write_text(re.sub(r"(?m)^# (components|labels): ", r"\1: ", path.read_text()))
    objects = rendered(path.parent)
    for kind in ("PodMonitor", "PrometheusRule"):
        assert by_name(objects)[f"{kind}/presift"]["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_a_changed_setting_rolls_its_own_pods(mine):
    """The name of a config map holds a digest of its content."""
    path = mine / "overlays/cpu/kustomization.yaml"
    path.write_text(path.read_text().replace("DRAFT_THREADS=2", "DRAFT_THREADS=3"))
    before, after = rendered("overlays/cpu"), rendered(path.parent)
    assert pod(before, "draft") != pod(after, "draft") and pod(before, "target") == pod(after, "target")


@pytest.mark.parametrize("readme", ["README.md", "k8s/README.md"])
def test_readmes_name_folders_that_exist(readme):
    folders = re.findall(r"-k ops/k8s/([\w/-]+)", (OPS / readme).read_text())
    assert folders and {folder.replace("mine/", "example/") for folder in folders} <= set(FOLDERS)


@pytest.mark.parametrize("overlay", MODELS)
def test_a_wrong_value_of_each_field_is_found(overlay):
    objects = [*rendered(overlay), *rendered(MODELS[overlay])]
    assert list(sources.unguarded(by_name(objects), fields(objects))) == []


def plant(objects, where, value):
    """Set or delete a field: `NAME PRESIFT SETTING` is a variable, else KIND/NAME and a path."""
    name, _, path = where.partition(" ")
    if path.startswith("PRESIFT "):
        config_map(objects, name).setdefault(key := variable(name, path.removeprefix("PRESIFT ")), "")
        put(config_map(objects, name), key, value)
    else:
        put(by_name(objects)[name], path.replace("POD", POD).replace("AFFINITY", AFFINITY), value)


# (rule, field, its wrong value)
PLANTED = [
    (settings, "draft PRESIFT listen", "0.0.0.0:50055"),
    (settings, "target PRESIFT metrics_listen", "0.0.0.0:9465"),
    (settings, "orchestrator PRESIFT http_listen", "0.0.0.0:8080"),
    (settings, "orchestrator PRESIFT draft_address", "dns:///drafts:50052"),
    (settings, "orchestrator PRESIFT drain", "60"),
    (settings, "draft PRESIFT threads", "two"),
    (settings, "orchestrator PRESIFT api_keys_file", None),
    (settings, "orchestrator PRESIFT api_keys_file", "/etc/presift/keys.yaml"),
    (settings, "target PRESIFT service_token_file", None),
    (settings, "target PRESIFT insecure", "true"),
    (settings, "draft PRESIFT model", "/model/qwen"),
    (settings, "target PRESIFT drain_s", "150"),
    (settings, "Deployment/orchestrator POD containers 0 lifecycle preStop sleep seconds", 30),
    (settings, "Deployment/draft POD containers 0 lifecycle", None),
    (resources, "Deployment/draft POD containers 0 resources limits memory", None),
    (resources, "Deployment/orchestrator POD containers 0 image", "presift-orchestrator"),
    (resources, "Deployment/cache POD containers 0 image", "valkey/valkey:9.1.0-alpine"),
    (resources, "Deployment/cache POD containers 0 image", "valkey/valkey:9.1.0-alpine@sha256:a35428eb"),
    (references, "Deployment/draft POD volumes 1 secret secretName", "token"),
    (references, "Deployment/cache POD volumes 0 configMap name", "cache"),
    (references, "Deployment/draft POD volumes 0 persistentVolumeClaim claimName", "model"),
    (references, "Deployment/draft POD containers 0 envFrom 0 configMapRef name", "draft"),
    (wrong_fields, "draft PRESIFT device", "cpu"),
    (scaling, "Deployment/draft spec replicas", 2),
    (scaling, "ScaledObject/target spec scaleTargetRef name", "draft"),
    (scaling, "ScaledObject/draft spec triggers 0 metadata query", "sum(draft_queue)"),
    (scaling, "target PRESIFT max_running", "32"),
    (network, "NetworkPolicy/cache spec ingress", [{}]),
    (network, "NetworkPolicy/draft spec ingress 0 from", None),
    (network, "NetworkPolicy/metrics spec ingress", []),
    (network, "NetworkPolicy/orchestrator spec ingress 0 from", None),
    (network, "NetworkPolicy/orchestrator spec ingress 0 from", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]),
    (network, "NetworkPolicy/orchestrator spec egress 0", {"ports": [{"port": 443}]}),
    (network, "NetworkPolicy/names spec egress 0 ports 0 port", 443),
]


@pytest.mark.parametrize(("rule", "where", "value"), PLANTED)
def test_a_planted_fault_is_found(rule, where, value):
    objects = rendered("overlays/multi-replica")
    assert list(rule(objects)) == []
    plant(objects, where, value)
    assert list(rule(objects))


PLANTED_MODELS = [
    ("gpu", "draft PRESIFT model", "/models/qwen2.5-7b"),
    ("gpu", "orchestrator PRESIFT tokenizer", "/models/qwen2.5-0.5b-instruct"),
    ("cpu", "Deployment/draft POD affinity", {}),
    ("cpu", "Deployment/target POD AFFINITY topologyKey", "topology.kubernetes.io/zone"),
    ("cpu", "Deployment/orchestrator POD AFFINITY labelSelector", {"matchLabels": {LABEL: "orchestrator"}}),
]


@pytest.mark.parametrize(("to", "where", "value"), PLANTED_MODELS)
def test_a_model_that_is_not_there_is_found(to, where, value):
    objects = rendered(f"overlays/{to}")
    plant(objects, where, value)
    assert list(models(objects, rendered(f"models/{to}")))


MISSPELT = [
    ("Deployment/draft POD containers 0 readynessProbe", {}),
    ("Deployment/target spec selector", None),
    ("Service/draft spec ports 0 number", 1),
    ("HorizontalPodAutoscaler/orchestrator spec maxReplicas", None),
    ("ScaledObject/draft spec minReplicas", 1),
    ("ScaledObject/draft spec triggers 0 metadata threshold", 2),
    ("ScaledObject/draft spec advanced horizontalPodAutoscalerConfig behavior scaleUp policies 0 value", "two"),
    ("PodMonitor/presift spec podMetricsEndpoints 0 port", 9464),
]


@pytest.mark.parametrize(("where", "value"), MISSPELT)
def test_a_field_that_the_api_does_not_know_is_found(where, value):
    objects = rendered("overlays/multi-replica")
    plant(objects, where, value)
    with pytest.raises(jsonschema.ValidationError):
        for each in objects:
            check(each)
