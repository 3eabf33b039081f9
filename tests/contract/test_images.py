"""The Dockerfile, the locks of the images, and the script that does without docker what the Dockerfile does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .stack_sources import ROOT, dockerfile
from .test_compose import tool

FOLDER = ROOT / "ops" / "docker"
IMAGES = ("models", "orchestrator", "draft", "target")


def script(path):
    """One of ops/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = script(FOLDER / "build_without_docker.py")
locks = script(ROOT / "ops" / "locks" / "images.py")


@pytest.fixture(scope="module")
def image():
    return dockerfile.read()


def test_hadolint_finds_nothing():
    done = subprocess.run([tool("hadolint"), str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text((FOLDER / "Dockerfile").read_text() + "\nFROM python\nRUN sudo pip install x\n")
    assert subprocess.run([tool("hadolint"), str(bad)], capture_output=True, check=False).returncode != 0


def test_the_installing_script_is_a_shell_script():
    subprocess.run(["sh", "-n", str(FOLDER / "install.sh")], check=True)


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_starts_from_a_pinned_base_and_is_nobodys(image, target):
    parents = [stage.parent for stage in image.line_of(target)]
    assert "@sha256:" in parents[0]
    assert image.last_of(target, "USER") == "10001:10001"
    assert image.environment(target)["HOME"] == "/tmp"


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_holds_what_was_installed_for_it_and_nothing_else(image, target):
    (copied,) = [step.words for step in image.stages[target].steps if step.name == "COPY"]
    assert copied == f"--from=install-{target} /opt/presift /opt/presift"
    assert [step.name for step in image.stages[target].steps].count("RUN") == 0


def test_every_stage_is_for_something(image):
    text = (FOLDER / "Dockerfile").read_text()
    for name in image.stages:
        used = f"FROM {name} AS" in text or f"--from={name} " in text
        assert used or name in IMAGES, name


def test_the_builder_sees_no_more_than_it_needs():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*" and all(line.startswith("!") for line in lines[1:-1]) and lines[-1] == "**/__pycache__"
    allowed = [line[1:] for line in lines[1:-1]]
    wanted = [
        word
        for stage in dockerfile.read().stages.values()
        for step in stage.steps
        if step.name == "COPY" and "--from=" not in step.words
        for word in step.words.split()[:-1]
    ]
    for word in wanted:
        assert any(word == each or word.startswith(f"{each}/") for each in allowed), f"{word} is not in .dockerignore"
    for each in allowed:
        assert (ROOT / each).exists(), f"{each} of .dockerignore is not there"
        assert any(word == each or word.startswith(f"{each}/") for word in wanted), f"nobody copies {each}"


def test_locks_of_images_are_those_of_the_lock():
    assert [role for role in (locks.BUILD, *locks.ROLES) if not locks._is_current(role)] == [], (
        "run ops/locks/images.py"
    )


def test_a_lock_that_is_stale_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "IMAGES", tmp_path)
    assert locks.main(["--check"]) == 1 and "target.txt" in capsys.readouterr().err
    assert locks.main([]) == 0 and locks.main(["--check"]) == 0
    (tmp_path / "target.txt").write_text("torch==0.0.1\n")
    assert locks.main(["--check"]) == 1


def test_the_orchestrator_has_no_torch_and_nobody_has_tools():
    held = {role: {line.partition("==")[0] for line in locks.text(role).splitlines()[1:]} for role in locks.ROLES}
    assert not held["orchestrator"] & {"torch", "sglang", "triton"}
    assert not held["models"] & {"torch", "sglang", "transformers"}
    assert "torch" in held["draft"] and "sglang" not in held["draft"]
    assert {"torch", "sglang"} <= held["target"]
    for names in held.values():
        assert not names & {"pytest", "ruff", "mypy", "hypothesis", "grpcio-tools", "pip"}


@pytest.mark.parametrize("target", IMAGES)
def test_the_script_does_what_the_dockerfile_says(image, target):
    """It has no steps of its own: each of the Dockerfile's is done, but those of the stage that needs root."""
    done = build.plan(image, target)
    written = [stage for stage in image.stages.values() if stage.name in ("wheel", "install", f"install-{target}")]
    assert done == [(step.name, step.words) for stage in written for step in stage.steps]
    assert [words for name, words in done if name == "RUN"][-1].startswith(f"sh /src/install.sh presift {target} ")
    assert "useradd" in str(image.stages[build.NEEDS_ROOT].steps), "what needs root is still where it is left out"


def test_the_script_knows_all_images_and_where_each_listens(image):
    assert set(build.IMAGES) == set(IMAGES) == set(locks.ROLES)
    for role, port in build.PORTS.items():
        assert str(port) in image.last_of(role, "EXPOSE").split()


def test_paths_of_an_image_are_led_into_a_folder():
    assert build.moved("/build/bin/python -m pip wheel --wheel-dir /wheel .", Path("/t")) == (
        "/t/build/bin/python -m pip wheel --wheel-dir /t/wheel ."
    )
    assert (
        build.moved("sh /src/install.sh /usr/src/x /tmpfile", Path("/t")) == "sh /t/src/install.sh /usr/src/x /tmpfile"
    )


def test_an_instruction_that_nobody_knows_is_refused(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:3.11 AS base\nONBUILD RUN true\n")
    with pytest.raises(ValueError, match="ONBUILD"):
        dockerfile.read(bad)


def installing(tmp_path, step, device):
    environment = {"PATH": os.environ["PATH"], "PRESIFT_VENV": str(tmp_path / "venv"), "PRESIFT_LOCKS": str(tmp_path)}
    command = ["sh", str(FOLDER / "install.sh"), step, "draft", device]
    environment |= {"PRESIFT_WHEEL": str(tmp_path), "TORCH_INDEX": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_installing_refuses_a_device_that_it_does_not_know(tmp_path):
    done = installing(tmp_path, "packages", "tpu")
    assert done.returncode == 2 and "tpu" in done.stderr


def test_what_is_installed_is_the_lock_alone(tmp_path):
    """With a lock that wants nothing: not even what an environment is born with stays."""
    (tmp_path / "draft.txt").write_text("# nothing\n")
    done = installing(tmp_path, "packages", "cpu")
    assert done.returncode == 0, done.stderr
    packages = tmp_path / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    assert not list(packages.glob("setuptools*"))
