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

from .promql import asked
from .sources import (
    CACHE_PORT,
    DECLARED,
    HTTP_PORT,
    K8S,
    METRICS_PORT,
    OPS,
    PORTS,
    PROJECT,
    ROLES,
    config,
    env_file,
    environment_faults,
    put,
    rendered,
    variable,
)

FOLDERS = sorted(str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml"))
# The folder of the models' job for each overlay.
MODELS = {each: "models/cpu" if each == "overlays/cpu" else "models/gpu" for each in FOLDERS if "overlays/" in each}
FULL = [folder for folder in FOLDERS if not folder.startswith(("components", "models/base"))]
COMPONENT = "app.kubernetes.io/component"
# The operators' own kinds; kubernetes-validate knows Kubernetes' alone.
SCHEMAS = yaml.safe_load(Path(__file__).with_name("operators.yaml").read_text())
# The oldest version that knows every field in use (`preStop.sleep`), and the newest that has a schema.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
NAMED_PORTS = {role: {"grpc": PORTS[role], "metrics": METRICS_PORT} for role in ROLES} | {
    "cache": {"redis": CACHE_PORT}
}
NAMED_PORTS["orchestrator"]["http"] = HTTP_PORT
USER = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}
POD_SECURITY = USER | {"seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def of_kind(objects, *kinds):
    return [each for each in objects if each["kind"] in kinds]


def named(objects, kind, name):
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pod(objects, name):
    return named(objects, "Deployment", name)["spec"]["template"]["spec"]


def containers(workload):
    spec = workload["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(objects, name):
    """A service's variables, which are all in config maps."""
    sources = [each["configMapRef"]["name"] for each in pod(objects, name)["containers"][0].get("envFrom", [])]
    return {key: value for source in sources for key, value in named(objects, "ConfigMap", source)["data"].items()}


def setting(objects, role, name):
    return environment(objects, role).get(variable(role, name))


def ports(objects):
    """Containers and services have the same ports; draft and target show each replica in DNS."""
    for role, wanted in NAMED_PORTS.items():
        (inside,), service = pod(objects, role)["containers"], named(objects, "Service", role)["spec"]
        if (found := {each["name"]: each["containerPort"] for each in inside["ports"]}) != wanted:
            yield f"{role}: container ports {found}"
        for each in service["ports"]:
            if each["port"] != wanted.get(each["targetPort"]):
                yield f"{role}: service port {each}"
        if service["selector"] | {COMPONENT: role} != service["selector"]:
            yield f"{role}: its service selects {service['selector']}"
        if role in ("draft", "target") and service.get("clusterIP") != "None":
            yield f"{role}: its service is not headless"


def probes(objects):
    """A hanging process is restarted, but not one whose model or target is missing: that one is not ready."""
    for role in NAMED_PORTS:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = pod(objects, role)["containers"][0].get(kind, {})
            asks = (probe.get("grpc", {}).get("port"), probe.get("grpc", {}).get("service", ""))
            health = {"readinessProbe": [""], "livenessProbe": ["liveness"]}.get(kind, ["", "liveness"])
            if not probe or (role != "cache" and asks not in [(PORTS[role], each) for each in health]):
                yield f"{role}: {kind} {probe}"


def settings(objects):
    """Variables are settings with valid values, the files that they name are mounted, and a drain has enough time."""
    for role in ROLES:
        known, spec = environment(objects, role), pod(objects, role)
        yield from environment_faults(role, known)
        mounts = {each["mountPath"]: each.get("readOnly") for each in spec["containers"][0]["volumeMounts"]}
        for name, value in known.items():
            if value.startswith("/") and not any(f"{value}/".startswith(f"{path}/") for path in mounts):
                yield f"{role}: {name} is {value}, where nothing is mounted"
        if mounts.get("/models") is not True:
            yield f"{role}: /models is not mounted read-only"
        # The port stays open until other pods have seen that this one is leaving.
        sleep_s = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = sleep_s + float(known[variable(role, "drain_s")]) + 5
        if sleep_s < 5 or spec["terminationGracePeriodSeconds"] < needed:
            yield f"{role}: sleeps {sleep_s} s and needs {needed} s to stop"


def images(objects):
    """presift's version and the cache of .env."""
    for name in NAMED_PORTS:
        wanted = env_file()["VALKEY_IMAGE"] if name == "cache" else f"presift-{name}:{PROJECT['version']}"
        if (found := pod(objects, name)["containers"][0]["image"]).removesuffix("-gpu") != wanted:
            yield f"{name}: image {found}"


def rights(objects):
    """Not root, a read-only root, no capabilities, no token of the API; requests, and a limit of memory."""
    for each in of_kind(objects, "Deployment", "Job"):
        name, spec = each["metadata"]["name"], each["spec"]["template"]["spec"]
        had = spec.get("securityContext", {})
        if had | POD_SECURITY != had:
            yield f"{name}: securityContext {had}"
        if spec.get("automountServiceAccountToken") is not False or spec.get("enableServiceLinks") is not False:
            yield f"{name}: has a token of the API, or links"
        for inside in containers(each):
            asks = inside["resources"]
            if inside.get("securityContext") != CONTAINER_SECURITY:
                yield f"{name}: securityContext of {inside['name']}"
            if not {"cpu", "memory"} <= asks.get("requests", {}).keys() or "memory" not in asks.get("limits", {}):
                yield f"{name}: resources {asks}"


def references(objects):
    """Config maps and claims exist; secrets are those that the README creates."""
    secrets = set(re.findall(r"create secret generic ([\w-]+)", (K8S / "README.md").read_text()))
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    exist = {"secretName": secrets, "claimName": {"models"}, "name": maps}
    for each in of_kind(objects, "Deployment"):
        volumes = [found for volume in each["spec"]["template"]["spec"]["volumes"] for found in volume.values()]
        volumes += [source["configMapRef"] for source in containers(each)[0].get("envFrom", [])]
        for source in (source for source in volumes if isinstance(source, dict)):
            for key in exist.keys() & source.keys():
                if source[key] not in exist[key]:
                    yield f"{each['metadata']['name']}: {key} {source[key]} does not exist"


def devices(objects):
    """GPUs are requested where the settings use one; on a CPU the threads are the requested cores."""
    for role in ("draft", "target"):
        asks, device = pod(objects, role)["containers"][0]["resources"], setting(objects, role, "device")
        if (device == "cuda") != ("nvidia.com/gpu" in asks["limits"]):
            yield f"{role}: device {device}, {asks['limits']}"
        if device == "cpu" and setting(objects, role, "threads") != asks["requests"]["cpu"]:
            yield f"{role}: {setting(objects, role, 'threads')} threads on {asks['requests']['cpu']} cores"


def scaling(objects):
    """One autoscaler for a Deployment, on declared metrics; orchestrators send what the targets run."""
    scalers = [each["spec"] for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")]
    names = [each["scaleTargetRef"]["name"] for each in scalers]
    if len(names) != len(set(names)) or any("replicas" in named(objects, "Deployment", each)["spec"] for each in names):
        yield f"{names}: an autoscaler competes with another, or with `replicas`"
    for role in ROLES:
        budget = named(objects, "PodDisruptionBudget", role)["spec"]
        if budget != {
            "maxUnavailable": 1,
            "selector": {"matchLabels": budget["selector"]["matchLabels"] | {COMPONENT: role}},
        }:
            yield f"{role}: disruption budget {budget}"
    metrics = {each["prometheus"] for each in DECLARED["metrics"]}
    for trigger in (trigger for each in scalers for trigger in each.get("triggers", [])):
        wanted = {name for name, _ in asked(trigger["metadata"]["query"]).selectors}
        if not wanted or wanted - metrics:
            yield f"an autoscaler asks for {wanted}"
    least = {each["scaleTargetRef"]["name"]: each.get("minReplicas", each.get("minReplicaCount")) for each in scalers}
    room = [int(setting(objects, role, "max_running")) * least.get(role, 1) for role in ("target", "orchestrator")]
    if room[0] != room[1]:
        yield f"targets run {room[0]} requests at once, orchestrators send {room[1]}"


ALL_ROLES = "draft target orchestrator"
ALLOWED = {
    ("in", "orchestrator", "anyone", "grpc"),
    ("in", "orchestrator", "anyone", "http"),
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
    """Nothing is allowed by default, and what the other NetworkPolicies allow is ALLOWED."""
    found, default = set(), named(objects, "NetworkPolicy", "nothing-by-default")["spec"]
    if default != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield f"the default is {default}"
    for spec in (each["spec"] for each in of_kind(objects, "NetworkPolicy")):
        for way, key, peers in (("in", "ingress", "from"), ("out", "egress", "to")):
            rules = [(rule.get("ports", [{"port": "any"}]), rule.get(peers, [{}])) for rule in spec.get(key, [])]
            edges = [(port["port"], peer) for ports, peers in rules for port in ports for peer in peers]
            found |= {(way, _selected(spec["podSelector"]), _peer(peer), port) for port, peer in edges}
    yield from (f"not allowed, or missing: {edge}" for edge in found ^ ALLOWED)


def _peer(peer):
    """A namespace, a range of addresses, or components. Raises for what no policy here uses, such as both at once."""
    if not peer:
        return "anyone"
    ((kind, value),) = peer.items()
    if kind == "namespaceSelector":
        return value["matchLabels"]["kubernetes.io/metadata.name"]
    return value["cidr"] if kind == "ipBlock" else _selected(value)


def _selected(selector):
    terms = [term["values"] for term in selector.get("matchExpressions", []) if term["key"] == COMPONENT]
    return " ".join(*terms) if terms else selector.get("matchLabels", {}).get(COMPONENT, "all")


def models(objects, made):
    """The job fetches what is served, and whoever uses a volume of one node runs on that node."""
    job, words = named(made, "Job", "models"), set()
    for each in containers(job):
        words |= {word.rpartition("/")[2] for word in each["command"]}
    served = {role: setting(objects, role, "model") for role in ("draft", "target")}
    yield from (f"no job fetches {each}" for each in served.values() if each.rpartition("/")[2] not in words)
    if setting(objects, "orchestrator", "tokenizer") != served["target"]:
        yield "the orchestrator's tokenizer is not the target's"
    if named(made, "PersistentVolumeClaim", "models")["spec"]["accessModes"] == ["ReadWriteOnce"]:
        # The job and the target may be the first on their node; draft and orchestrator follow the target.
        for each in (job, *(named(objects, "Deployment", role) for role in ROLES)):
            affinity = each["spec"]["template"]["spec"].get("affinity", {}).get("podAffinity", {})
            (term,) = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [{}])
            beside = f"models {ALL_ROLES}" if each["metadata"]["name"] in ("models", "target") else "target"
            if term.get("topologyKey") != "kubernetes.io/hostname" or _selected(term["labelSelector"]) != beside:
                yield f"{each['metadata']['name']}: is not kept on one node with {beside}"


RULES = (ports, probes, settings, images, rights, references, devices, scaling, network)


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
    assert {each["metadata"]["name"] for each in of_kind(objects, "Deployment")} == set(NAMED_PORTS)
    assert [*models(objects, made), *rights(made)] == []


def test_compose_has_the_same_sizes():
    """What compose.yaml and overlays/cpu both set is the same, but for paths."""
    objects, services = rendered("overlays/cpu"), config()["services"]
    for role in ROLES:
        here, there = environment(objects, role), services[role]["environment"]
        shared = {name for name in here.keys() & there.keys() if not name.endswith("_FILE")}
        assert {name: here[name] for name in shared} == {name: there[name] for name in shared}
        assert variable(role, "threads" if role != "orchestrator" else "max_running") in shared


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
        assert named(objects, kind, "presift")["metadata"]["labels"]["release"] == "kube-prometheus-stack"


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


def plant(objects, where, value):
    """Set or delete a field: KIND/NAME.PATH, Deployment by default; `pod` and `container` are its parts, and
    `NAME.PRESIFT.SETTING` a variable in the config map of a service."""
    name, _, path = where.partition(".")
    kind, _, name = name.rpartition("/")
    if path.startswith("PRESIFT."):
        source = pod(objects, name)["containers"][0]["envFrom"][0]["configMapRef"]["name"]
        named(objects, "ConfigMap", source)["data"].setdefault(key := variable(name, path.removeprefix("PRESIFT.")), "")
        put(named(objects, "ConfigMap", source)["data"], key, value)
    else:
        path = re.sub(r"^container\b", "pod.containers.0", path)
        put(named(objects, kind or "Deployment", name), re.sub(r"^pod\b", "spec.template.spec", path), value)


# (rule, field, its wrong value)
PLANTED = [
    (ports, "draft.container.ports.1.containerPort", 9100),
    (ports, "Service/target.spec.ports.0.port", 50052),
    (ports, "Service/draft.spec.selector", {COMPONENT: "target"}),
    (ports, "Service/target.spec.clusterIP", None),
    (probes, "orchestrator.container.readinessProbe.grpc.port", 50052),
    (probes, "target.container.livenessProbe.grpc.service", None),
    (probes, "draft.container.startupProbe", None),
    (probes, "cache.container.readinessProbe", None),
    (settings, "draft.PRESIFT.listen", "0.0.0.0:50055"),
    (settings, "target.PRESIFT.metrics_listen", "0.0.0.0:9465"),
    (settings, "orchestrator.PRESIFT.http_listen", "0.0.0.0:8080"),
    (settings, "orchestrator.PRESIFT.draft_address", "dns:///drafts:50052"),
    (settings, "orchestrator.PRESIFT.drain", "60"),
    (settings, "draft.PRESIFT.threads", "two"),
    (settings, "orchestrator.PRESIFT.api_keys_file", None),
    (settings, "orchestrator.PRESIFT.api_keys_file", "/etc/presift/keys.yaml"),
    (settings, "target.PRESIFT.service_token_file", None),
    (settings, "target.PRESIFT.insecure", "true"),
    (settings, "draft.PRESIFT.model", "/model/qwen"),
    (settings, "target.PRESIFT.drain_s", "150"),
    (settings, "orchestrator.container.lifecycle.preStop.sleep.seconds", 30),
    (settings, "draft.container.lifecycle", None),
    (settings, "target.container.volumeMounts.0.readOnly", None),
    (images, "target.container.image", "presift-target:0.1.1-gpu"),
    (images, "cache.container.image", "valkey/valkey:9.0.0"),
    (rights, "draft.pod.securityContext.runAsUser", 0),
    (rights, "target.pod.securityContext.seccompProfile.type", "Unconfined"),
    (rights, "cache.pod.automountServiceAccountToken", None),
    (rights, "orchestrator.pod.enableServiceLinks", True),
    (rights, "cache.container.securityContext.readOnlyRootFilesystem", False),
    (rights, "target.container.securityContext.capabilities", {"add": ["SYS_ADMIN"]}),
    (rights, "draft.container.resources.limits.memory", None),
    (rights, "orchestrator.container.resources.requests.cpu", None),
    (references, "draft.pod.volumes.1.secret.secretName", "token"),
    (references, "cache.pod.volumes.0.configMap.name", "cache"),
    (references, "draft.pod.volumes.0.persistentVolumeClaim.claimName", "model"),
    (references, "draft.container.envFrom.0.configMapRef.name", "draft"),
    (devices, "target.container.resources.limits", {}),
    (devices, "draft.PRESIFT.device", "cpu"),
    (scaling, "draft.spec.replicas", 2),
    (scaling, "ScaledObject/target.spec.scaleTargetRef.name", "draft"),
    (scaling, "ScaledObject/draft.spec.triggers.0.metadata.query", "sum(draft_queue)"),
    (scaling, "PodDisruptionBudget/target.spec.maxUnavailable", 0),
    (scaling, "PodDisruptionBudget/target.spec.selector.matchLabels", {"a": "b"}),
    (scaling, "target.PRESIFT.max_running", "32"),
    (network, "NetworkPolicy/nothing-by-default.spec.podSelector", {"matchLabels": {COMPONENT: "draft"}}),
    (network, "NetworkPolicy/cache.spec.ingress", [{}]),
    (network, "NetworkPolicy/draft.spec.ingress.0.from", None),
    (network, "NetworkPolicy/metrics.spec.ingress", []),
    (network, "NetworkPolicy/orchestrator.spec.egress.0", {"ports": [{"port": 443}]}),
    (network, "NetworkPolicy/names.spec.egress.0.ports.0.port", 443),
]


@pytest.mark.parametrize(("rule", "where", "value"), PLANTED)
def test_a_planted_fault_is_found(rule, where, value):
    objects = rendered("overlays/multi-replica")
    if "envFrom" not in where:
        assert list(rule(objects)) == []
    plant(objects, where, value)
    assert list(rule(objects))


_TERM = "pod.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution.0"
PLANTED_MODELS = [
    ("gpu", "draft.PRESIFT.model", "/models/qwen2.5-7b"),
    ("gpu", "orchestrator.PRESIFT.tokenizer", "/models/qwen2.5-0.5b-instruct"),
    ("cpu", "draft.pod.affinity", {}),
    ("cpu", f"target.{_TERM}.topologyKey", "topology.kubernetes.io/zone"),
    ("cpu", f"orchestrator.{_TERM}.labelSelector", {"matchLabels": {COMPONENT: "orchestrator"}}),
]


@pytest.mark.parametrize(("to", "where", "value"), PLANTED_MODELS)
def test_a_model_that_is_not_there_is_found(to, where, value):
    objects = rendered(f"overlays/{to}")
    plant(objects, where, value)
    assert list(models(objects, rendered(f"models/{to}")))


MISSPELT = [
    ("draft.container.readynessProbe", {}),
    ("target.spec.selector", None),
    ("Service/draft.spec.ports.0.number", 1),
    ("HorizontalPodAutoscaler/orchestrator.spec.maxReplicas", None),
    ("ScaledObject/draft.spec.minReplicas", 1),
    ("ScaledObject/draft.spec.triggers.0.metadata.threshold", 2),
    ("ScaledObject/draft.spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleUp.policies.0.value", "two"),
    ("PodMonitor/presift.spec.podMetricsEndpoints.0.port", 9464),
]


@pytest.mark.parametrize(("where", "value"), MISSPELT)
def test_a_field_that_the_api_does_not_know_is_found(where, value):
    objects = rendered("overlays/multi-replica")
    plant(objects, where, value)
    with pytest.raises(jsonschema.ValidationError):
        for each in objects:
            check(each)
