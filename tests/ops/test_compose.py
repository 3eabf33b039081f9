"""The compose files: Docker Compose accepts every layering, and the result has the right ports, settings and images.

Docker Compose is a Python package in .venv/tools (`make check`); it needs no docker engine to read the files.
"""

import copy
import re

import pytest

from . import sources
from .sources import BASE, HTTP_PORT, OBSERVABILITY, PORTS, PROJECT, ROLES, ROOT, STACKS, TLS, config, variable

TWINS = {"draft-gpu": "draft", "target-gpu": "target"}
PRESIFT = {role: role for role in ROLES} | TWINS
ONE_SHOTS = {"keys", "models", "certificates"}
OBSERVERS = {"otel-collector", "tempo", "prometheus", "grafana"}
PINNED = re.compile(r"^(presift-\w+:{}(-gpu)?|.+:[\w.-]+@sha256:[0-9a-f]{{64}})$".format(re.escape(PROJECT["version"])))


def addressing(services, files):
    """Ports, addresses, settings and health checks of presift's own services."""
    for name, role in PRESIFT.items():
        service, has_tls = services[name], TLS in files
        yield from sources.environment_faults(role, service["environment"], metrics=OBSERVABILITY in files)
        test, probe = service["healthcheck"]["test"], ["CMD", "python", "-m", "presift.rpc.probe"]
        if test[:5] != [*probe, f"127.0.0.1:{PORTS[role]}"] or ("--ca" in test) != has_tls:
            yield f"{name}: healthcheck is {test}"
        if (variable(role, "TLS_CERT") in service["environment"]) != has_tls:
            yield f"{name}: TLS_CERT"
        stop_s = sources.stop_s(role, service["environment"])
        if float(service["stop_grace_period"].removesuffix("s")) <= stop_s:
            yield f"{name}: has {service['stop_grace_period']} to stop and drains for {stop_s} s"
        is_on_gpu = service["environment"].get(variable(role, "DEVICE")) == "cuda"
        if is_on_gpu != (name in TWINS) or (is_on_gpu and variable(role, "MAX_RUNNING") in service["environment"]):
            yield f"{name}: runs on the wrong device, or with the limit of another"
        if name != role and service["networks"]["inner"]["aliases"] != [role]:
            yield f"{name}: is not reached as {role}"
    running = {services[role]["environment"][variable(role, "MAX_RUNNING")] for role in ("target", "orchestrator")}
    if len(running) != 1:
        yield f"one target and one orchestrator have different MAX_RUNNING: {running}"


def openness(services, files):
    """Only the orchestrator, Prometheus and Grafana have ports on the host, and only on the loopback address."""
    for name, service in services.items():
        inside = [each["target"] for each in service.get("ports", [])]
        wanted = {"orchestrator": [PORTS["orchestrator"], HTTP_PORT], "prometheus": [9090], "grafana": [3000]}
        if inside != wanted.get(name, []):
            yield f"{name}: publishes {inside}"
        if any(each["host_ip"] != "127.0.0.1" for each in service.get("ports", [])):
            yield f"{name}: is reachable from other machines"
        internal = {"cache"} if name == "cache" else {"inner"}
        if name in ("cache", "draft", "target", *TWINS) and set(service["networks"]) != internal:
            yield f"{name}: is in the networks {set(service['networks'])}"
        if name in ROLES and OBSERVABILITY in files:
            shared = set(services["prometheus"]["networks"]) & set(service["networks"])
            if shared != {"inner"}:  # with two networks a name has two records, and is scraped twice
                yield f"{name}: shares {shared} with Prometheus"


def hardening(services, files):
    """Read-only root, no capabilities, bounded memory, pinned images."""
    for name, service in services.items():
        if service.get("read_only") is not True or service["cap_drop"] != ["ALL"] or service.get("privileged"):
            yield f"{name}: has more rights than it needs"
        if service["security_opt"] != ["no-new-privileges:true"] or service.get("network_mode", "none") != "none":
            yield f"{name}: security_opt or network_mode"
        if "memory" not in service["deploy"]["resources"].get("limits", {}):
            yield f"{name}: memory has no limit"
        if not PINNED.match(service["image"]):
            yield f"{name}: image {service['image']} is not pinned"


def mounting(services, files):
    """presift's services run their own image, and only read the models and the secrets that they need."""
    for name, role in PRESIFT.items():
        if services[name]["image"].removesuffix("-gpu") != f"presift-{role}:{PROJECT['version']}":
            yield f"{name}: image {services[name]['image']}"
        mounted = {each["target"]: each.get("read_only", False) for each in services[name]["volumes"]}
        wanted = {"/models", "/keys/inner"} | ({"/certificates"} if TLS in files else set())
        if set(mounted) != wanted | ({"/keys/door"} if role == "orchestrator" else set()) or not all(mounted.values()):
            yield f"{name}: mounts {mounted}"


def starting(services, files):
    """Each service waits for the health or the end of what it needs; one service builds each image."""
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            ends, probed = other in ONE_SHOTS, "test" in services[other].get("healthcheck", {})
            condition = "completed_successfully" if ends else "healthy" if probed else "started"
            if wanted["condition"] != f"service_{condition}":
                yield f"{name}: waits for {other} to be {wanted['condition']}"
        if name in ONE_SHOTS and service.get("restart", "no") != "no":
            yield f"{name}: is started again when it has ended"
    missing = {"keys", "cache", "draft", "target", *TWINS} - services["orchestrator"]["depends_on"].keys()
    if missing:
        yield f"orchestrator: does not wait for {missing}"
    # Two services that export one image at the same time fail with "image already exists".
    built = sorted(service["image"] for service in services.values() if "build" in service)
    if built != sorted({each["image"] for each in services.values() if each["image"].startswith("presift-")}):
        yield f"images built: {built}"


RULES = (addressing, openness, hardening, mounting, starting)


@pytest.fixture(scope="module", params=STACKS, ids="+".join)
def stack(request):
    return config(files=request.param)["services"], request.param


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_layering_is_right(stack, rule):
    assert list(rule(*stack)) == []


def test_every_layering_has_the_services(stack):
    services, files = stack
    observers = OBSERVERS if OBSERVABILITY in files else set()
    assert set(services) - ONE_SHOTS == {"cache", *ROLES, *TWINS} | observers


# (rule, path of a field, its wrong value)
PLANTED = [
    (addressing, "draft environment PRESIFT_DRAFT_LISTEN", "0.0.0.0:50062"),
    (addressing, "orchestrator environment PRESIFT_ORCHESTRATOR_TARGET_ADDRESS", "dns:///target:50054"),
    (addressing, "orchestrator environment PRESIFT_ORCHESTRATOR_HTTP_LISTEN", "0.0.0.0:8080"),
    (addressing, "orchestrator environment PRESIFT_ORCHESTRATOR_API_KEYS_FILE", None),
    (addressing, "target environment PRESIFT_TARGET_SERVICE_TOKEN_FILE", None),
    (addressing, "target environment PRESIFT_TARGET_METRICS_LISTEN", "0.0.0.0:9465"),
    (addressing, "draft environment PRESIFT_DRAFT_MODELS", "/models/a"),
    (addressing, "draft-gpu environment PRESIFT_TARGET_DEVICE", "cuda"),
    (addressing, "orchestrator environment PRESIFT_ORCHESTRATOR_DRAFT_TIMEOUT_S", "soon"),
    (addressing, "draft environment PRESIFT_DRAFT_LOG_FORMAT", "xml"),
    (addressing, "target environment PRESIFT_TARGET_TLS_CA", "/certificates/ca.pem"),
    (addressing, "orchestrator environment PRESIFT_ORCHESTRATOR_MAX_RUNNING", "64"),
    (addressing, "target-gpu environment PRESIFT_TARGET_MAX_RUNNING", "16"),
    (addressing, "target healthcheck test 4", "127.0.0.1:50052"),
    (addressing, "orchestrator healthcheck test 7", "--insecure"),
    (addressing, "draft environment PRESIFT_DRAFT_TLS_CERT", None),
    (addressing, "target-gpu environment PRESIFT_TARGET_DEVICE", "cpu"),
    (addressing, "draft stop_grace_period", "30s"),
    (addressing, "target-gpu networks inner aliases", ["draft"]),
    (openness, "orchestrator ports 1 target", 8080),
    (openness, "orchestrator ports 0 host_ip", "0.0.0.0"),
    (openness, "draft ports", [{"target": 50052, "host_ip": "127.0.0.1"}]),
    (openness, "cache networks front", {}),
    (openness, "prometheus networks cache", {}),
    (hardening, "tempo read_only", False),
    (hardening, "cache privileged", True),
    (hardening, "cache cap_drop", []),
    (hardening, "keys security_opt", []),
    (hardening, "draft network_mode", "host"),
    (hardening, "grafana deploy resources limits memory", None),
    (hardening, "cache image", "valkey/valkey:9.1.0-alpine"),
    (mounting, "target image", "presift-draft:0.1.0"),
    (hardening, "models image", "presift-models:0.0.9"),
    (mounting, "draft volumes 0 read_only", False),
    (mounting, "target volumes 1 target", "/keys/door"),
    (starting, "orchestrator depends_on cache condition", "service_started"),
    (starting, "draft depends_on models condition", "service_started"),
    (starting, "orchestrator depends_on keys", None),
    (starting, "models restart", "unless-stopped"),
    (starting, "orchestrator build", {}),
]


@pytest.fixture(scope="module")
def whole():
    return config(files=STACKS[-1])["services"]


@pytest.mark.parametrize(("rule", "path", "value"), PLANTED)
def test_a_planted_fault_is_found(whole, rule, path, value):
    broken = copy.deepcopy(whole)
    sources.put(broken, path, value)
    assert list(rule(broken, STACKS[-1]))


def test_layers_combine_in_any_order():
    assert config(files=(BASE, TLS, OBSERVABILITY))["services"] == config(files=(BASE, OBSERVABILITY, TLS))["services"]


def test_the_profile_is_cpu_by_default_and_gpu_by_choice():
    running = set(config(profiles=())["services"])
    assert running.isdisjoint(TWINS) and set(TWINS.values()) <= running
    running = set(config(profiles=("gpu",))["services"])
    assert running.isdisjoint(TWINS.values()) and set(TWINS) <= running


@pytest.mark.parametrize("fault", ["memory_limit: 1g", "depends_on: [absent]", "cpus: ${ABSENT}"])
def test_a_fault_in_the_text_is_found(tmp_path, fault):
    """Compose checks field names against its schema, and knows services and variables that do not exist."""
    text = (ROOT / BASE).read_text()
    assert text.count("    networks: [cache]\n") == 1
    (tmp_path / BASE).write_text(text.replace("    networks: [cache]\n", f"    networks: [cache]\n    {fault}\n"))
    (tmp_path / ".env").write_text((ROOT / ".env").read_text())
    with pytest.raises(AssertionError):
        config(root=tmp_path)


def gpus_of(service):
    (reserved,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert "count" not in reserved  # a count starts at GPU 0 for every container
    return reserved["device_ids"]


def test_draft_and_target_have_a_gpu_each(whole):
    assert {name: gpus_of(whole[name]) for name in TWINS} == {"draft-gpu": ["0"], "target-gpu": ["1"]}
    moved = config(DRAFT_GPU="GPU-5", TARGET_GPU="3")["services"]
    assert {name: gpus_of(moved[name]) for name in TWINS} == {"draft-gpu": ["GPU-5"], "target-gpu": ["3"]}


def test_the_readmes_override_adds_a_target_on_another_gpu(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "ops/docker/README.md").read_text(), re.DOTALL)
    (tmp_path / "compose.override.yaml").write_text(example)
    services = config(files=(BASE, str(tmp_path / "compose.override.yaml")))["services"]
    assert gpus_of(services["target-gpu-2"]) == ["2"] and "build" not in services["target-gpu-2"]
    assert services["target-gpu-2"]["networks"]["inner"]["aliases"] == ["target"]
    assert services["target-gpu-2"]["environment"] == services["target-gpu"]["environment"]


def test_bind_opens_the_orchestrator_alone():
    """Grafana and Prometheus ask for no credentials."""
    services = config(files=(BASE, OBSERVABILITY), BIND="0.0.0.0")["services"]
    bound = {name: each["ports"][0]["host_ip"] for name, each in services.items() if "ports" in each}
    assert bound == {"orchestrator": "0.0.0.0", "prometheus": "127.0.0.1", "grafana": "127.0.0.1"}


def test_networks_of_the_inner_services_are_internal():
    networks = config()["networks"]
    assert networks["inner"]["internal"] is networks["cache"]["internal"] is True


def test_models_may_be_a_folder():
    (mount,) = [each for each in config(MODELS="./mine")["services"]["draft"]["volumes"] if each["target"] == "/models"]
    assert (mount["type"], mount["source"]) == ("bind", str(ROOT / "mine"))


def secrets_in(text):
    return re.findall(r"(?i)(?:password|secret|token|api_key)\w*[:=] *[^\s/$\[{#]{8,}", text)


def test_no_secret_is_in_the_files():
    assert secrets_in("PRESIFT_SERVICE_TOKEN: 0123456789abcdef") and secrets_in("password=letmein!!")
    assert {file: found for file in (*STACKS[-1], ".env") if (found := secrets_in((ROOT / file).read_text()))} == {}


def unused_variables(text):
    """Variables of .env that no compose file reads, except for Compose's own."""
    own = {"COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"}
    return sources.env_file().keys() - set(re.findall(r"\$\{(\w+)\}", text)) - own


def test_every_variable_of_env_reaches_a_service():
    text = "".join((ROOT / file).read_text() for file in STACKS[-1])
    assert unused_variables(text) == set()
    assert unused_variables(text.replace("${CACHE_TIMEOUT_S}", "1")) == {"CACHE_TIMEOUT_S"}
