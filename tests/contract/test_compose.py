"""The compose files: Compose takes every layering, what it makes of them is safe, and our reader reads as it does.

Docker Compose and hadolint come as Python packages into .venv/tools (`make check`); no docker engine is needed.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from . import compose_files
from .compose_files import BASE, LAYERS, OBSERVABILITY, ROOT, STACKS, TLS, stack, variables
from .in_step_rules import ONE_SHOTS, TWINS

TOOLS = ROOT / ".venv" / "tools" / "bin"
OURS = ("draft", "target", "orchestrator", "draft-gpu", "target-gpu", "keys", "models")


def tool(name):
    """Skips where `make check` has not installed it; fails in CI, where it must be."""
    path = next((each / name for each in (TOOLS, *_elsewhere()) if (each / name).exists()), None)
    if path is None:
        told = f"{name} is not in .venv/tools (make check brings it): compose files and images are NOT CHECKED by it"
        pytest.fail(told) if os.environ.get("CI") and TOOLS.exists() else pytest.skip(told)
    return str(path)


def _elsewhere():
    return [Path(os.environ["PRESIFT_TOOLS"])] if "PRESIFT_TOOLS" in os.environ else []


def compose(*arguments, files=(BASE,), profiles=("cpu",), root=ROOT, **environment):
    flags = [flag for file in files for flag in ("-f", str(root / file))]
    flags += [flag for profile in profiles for flag in ("--profile", profile)]
    command = [tool("docker-compose"), "--project-directory", str(root), *flags, *arguments]
    known = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=known, timeout=60, check=False)


def config(**options):
    done = compose("config", "--format", "json", **options)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("files", STACKS, ids="+".join)
@pytest.mark.parametrize("profiles", [["cpu"], ["gpu"], ["cpu", "gpu"]], ids="+".join)
def test_compose_takes_every_layering(files, profiles):
    known = config(files=files, profiles=profiles)
    running = set(known["services"]) - ONE_SHOTS
    twins = {"cpu": {"draft", "target"}, "gpu": set(TWINS)}
    assert {"cache", "orchestrator", *(name for each in profiles for name in twins[each])} <= running


def test_layers_go_together_in_any_order():
    assert config(files=(BASE, TLS, OBSERVABILITY))["services"] == config(files=(BASE, OBSERVABILITY, TLS))["services"]


def test_cpu_is_what_runs_without_a_word():
    done = compose("config", "--services", profiles=())
    assert {"draft", "target"} <= set(done.stdout.split()) and not set(TWINS) & set(done.stdout.split())


def test_a_fault_is_told(tmp_path):
    """The check above fires."""
    text = (ROOT / BASE).read_text()
    for name, fault in (("bad.yaml", "memory_limit: 1g"), ("worse.yaml", "depends_on: [nobody]")):
        (tmp_path / name).write_text(
            text.replace("    networks: [cache]\n", f"    networks: [cache]\n    {fault}\n", 1)
        )
        (tmp_path / ".env").write_text((ROOT / ".env").read_text())
        assert compose("config", "-q", files=(name,), root=tmp_path).returncode != 0, fault


@pytest.mark.parametrize("files", STACKS, ids="+".join)
def test_our_reader_reads_as_compose_does(files):
    theirs, ours = config(files=files, profiles=["cpu", "gpu"])["services"], stack(files)["services"]
    assert set(theirs) == set(ours)
    for name, service in ours.items():
        environment = {key: str(value) for key, value in service.get("environment", {}).items()}
        assert theirs[name].get("environment", {}) == environment, name
        assert theirs[name]["image"] == service["image"]
        if "test" in service.get("healthcheck", {}):
            assert theirs[name]["healthcheck"]["test"] == service["healthcheck"]["test"]
        inside = {str(each["target"]) for each in theirs[name].get("ports", [])}
        assert inside == {str(each).rpartition(":")[2] for each in service.get("ports", [])}
        mounted = {each["target"] for each in theirs[name].get("volumes", [])}
        assert mounted == {each.removesuffix(":ro").rpartition(":")[2] for each in service.get("volumes", [])}


@pytest.fixture(params=STACKS, ids="+".join)
def services(request):
    return stack(request.param)["services"]


def test_nothing_runs_as_it_likes(services):
    """Read-only, no capabilities, nothing gained by setuid, memory bounded, images pinned."""
    for name, service in services.items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert re.search(r":[\w.-]*\d+\.\d+(\.\d+)?[\w.-]*(@sha256:[0-9a-f]{64})?$", service["image"]), service["image"]
        assert "privileged" not in service and service.get("network_mode") != "host", name


def test_every_image_of_ours_is_built_by_one_service_alone(services):
    """Two that export one name at the same time: "image already exists", on the first build of a machine."""
    built = [service["image"] for service in services.values() if "build" in service]
    ours = {service["image"] for service in services.values() if service["image"].startswith("presift-")}
    assert sorted(built) == sorted(ours)
    # Whoever builds the orchestrator's is brought up by everybody who runs it.
    assert "build" in services["keys"] and "keys" in services["orchestrator"]["depends_on"]


def gpus_of(service):
    reserved = service["deploy"]["resources"]["reservations"]["devices"]
    assert all("count" not in each for each in reserved)  # it counts from GPU 0 for every container
    return [number for each in reserved for number in each["device_ids"]]


def test_draft_and_target_have_a_gpu_each(services):
    assert {name: gpus_of(services[name]) for name in TWINS} == {"draft-gpu": ["0"], "target-gpu": ["1"]}
    moved = config(profiles=["gpu"], DRAFT_GPU="GPU-5", TARGET_GPU="3")["services"]
    assert {name: gpus_of(moved[name]) for name in TWINS} == {"draft-gpu": ["GPU-5"], "target-gpu": ["3"]}


def test_another_gpu_gets_a_target_as_the_readme_says(tmp_path):
    readme = (ROOT / "ops/docker/README.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "compose.override.yaml").write_text(example)
    files = (BASE, str(tmp_path / "compose.override.yaml"))
    known = config(files=files, profiles=["gpu"])["services"]
    assert gpus_of(known["target-gpu-2"]) == ["2"] and "build" not in known["target-gpu-2"]
    assert known["target-gpu-2"]["networks"]["inner"]["aliases"] == ["target"]
    assert known["target-gpu-2"]["environment"] == known["target-gpu"]["environment"]


def test_images_of_others_have_a_digest():
    for name, image in variables().items():
        if name.endswith("_IMAGE") and name != "SGLANG_IMAGE":
            assert re.search(r"@sha256:[0-9a-f]{64}$", image), name


def test_who_waits_waits_for_health(services):
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            condition = wanted["condition"]
            if other in ONE_SHOTS:
                assert condition == "service_completed_successfully" and services[other].get("restart") in (None, "no")
            elif "healthcheck" in services[other]:
                assert condition == "service_healthy", (name, other)
    assert set(services["orchestrator"]["depends_on"]) >= {
        "cache",
        "draft",
        "target",
        "draft-gpu",
        "target-gpu",
        "keys",
    }


def test_scaled_services_take_no_name_and_no_port_of_the_host(services):
    for name in ("draft", "target", *TWINS):
        assert "ports" not in services[name] and "container_name" not in services[name]


def test_twins_answer_to_the_same_name(services):
    for twin, name in TWINS.items():
        assert services[twin]["networks"]["inner"]["aliases"] == [name]
        own, twins = (set(services[each]["environment"]) for each in (name, twin))
        prefix = f"PRESIFT_{name.upper()}"
        assert own ^ twins == {f"{prefix}_THREADS", f"{prefix}_DEVICE"} and f"{prefix}_DEVICE" in twins


def test_only_the_orchestrator_is_reached_from_outside():
    networks = stack((BASE,))["networks"]
    assert networks["inner"]["internal"] is networks["cache"]["internal"] is True
    for files in STACKS:
        for name, service in stack(files)["services"].items():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:"), (name, port)
            if name in ("cache", "draft", "target", *TWINS):
                assert set(service["networks"]) <= {"inner", "cache"}, name


def test_opening_the_doors_does_not_open_what_asks_nobody():
    """Grafana and Prometheus let anybody in who reaches them."""
    known = config(files=(BASE, OBSERVABILITY), BIND="0.0.0.0")["services"]
    bound = {
        name: {each["host_ip"] for each in service["ports"]} for name, service in known.items() if "ports" in service
    }
    assert bound == {"orchestrator": {"0.0.0.0"}, "prometheus": {"127.0.0.1"}, "grafana": {"127.0.0.1"}}


def test_prometheus_shares_one_network_with_what_it_counts():
    """With two, the orchestrator's name has two records."""
    services = stack((BASE, OBSERVABILITY))["services"]
    for name in ("orchestrator", "draft", "target"):
        assert len(set(services["prometheus"]["networks"]) & set(services[name]["networks"])) == 1


def test_who_may_call_is_known_in_every_stack(services):
    """Nobody listens beyond loopback by --insecure, and the secrets are files of a volume."""
    for name in ("draft", "target", "orchestrator", *TWINS):
        environment = services[name]["environment"]
        assert not any(key.endswith("_INSECURE") for key in environment)
        prefix = f"PRESIFT_{TWINS.get(name, name).upper()}_"
        assert environment[f"{prefix}SERVICE_TOKEN_FILE"] == "/keys/inner/service-token"
        mounted = [each for each in services[name]["volumes"] if "keys" in each]
        assert all(each.endswith(":ro") for each in mounted)
        assert ("door-keys:/keys/door:ro" in mounted) is (name == "orchestrator")
        assert not any("caller" in each or "authority" in each for each in services[name]["volumes"])


def test_no_secret_is_in_the_files():
    for file in (*LAYERS, ".env"):
        assert not re.search(
            r"(?i)(password|secret|token|api_key)\w*[:=] *[^\s/$\[{#]{8,}", (ROOT / file).read_text()
        ), file


def test_models_are_never_written_by_who_serves(services):
    for name in ("draft", "target", "orchestrator", *TWINS):
        assert f"{variables()['MODELS']}:/models:ro" in services[name]["volumes"]


def test_a_folder_of_ones_own_takes_the_place_of_the_volume():
    known = config(MODELS="./my-models")["services"]["draft"]["volumes"]
    assert any(each["type"] == "bind" and each["source"] == str(ROOT / "my-models") for each in known)


def test_reader_refuses_a_variable_that_nobody_sets(tmp_path):
    (tmp_path / ".env").write_text("A=1\n")
    (tmp_path / BASE).write_text("services: {a: {image: '${B}'}}\n")
    with pytest.raises(KeyError):
        compose_files.stack((BASE,), tmp_path)
