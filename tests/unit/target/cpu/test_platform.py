"""The platform door and the torchvision work-around: active on a plain CPU, inert everywhere else."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from presift.models import torchvision_ops
from presift.target.cpu import platform

torch = pytest.importorskip("torch")
is_cpu_build = torch.version.cuda is None and torch.version.hip is None


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


@pytest.mark.skipif(not is_cpu_build, reason="needs a CPU build of torch")
def test_a_cpu_build_without_an_accelerator_gets_our_platform() -> None:
    assert platform.activate() == "presift.target.cpu.device.CpuPlatform"


def test_inert_with_a_cuda_build_even_if_no_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert platform.activate() is None


def test_inert_with_a_rocm_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert platform.activate() is None


def test_inert_where_an_accelerator_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert platform.activate() is None


def test_inert_where_sglangs_own_cpu_engine_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert platform.activate() is None


def test_importing_the_entry_point_is_light() -> None:
    code = "import sys, presift.target.cpu.platform; print({'torch', 'sglang', 'grpc'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_entry_point_is_installed() -> None:
    entries = importlib.metadata.entry_points(group="sglang.srt.platforms")
    assert entries["presift_cpu"].load() is platform.activate


@pytest.fixture
def fake_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_C.so").write_bytes(b"not a library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torchvision_ops, "_declared", [])
    monkeypatch.setattr(torchvision_ops, "_are_declared", lambda: False)
    declared: list[int] = []
    monkeypatch.setattr(torchvision_ops, "_declare", lambda: declared.append(1) or torchvision_ops._declared.append(1))
    yield declared


def test_operators_that_do_not_load_are_declared_once(fake_torchvision: list[int]) -> None:
    assert torchvision_ops.declare_missing()
    assert torchvision_ops.declare_missing()
    assert fake_torchvision == [1]


def test_operators_that_load_are_left_alone(fake_torchvision: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert not torchvision_ops.declare_missing()
    assert fake_torchvision == []


def test_operators_that_are_known_are_left_alone(fake_torchvision: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_ops, "_are_declared", lambda: True)
    assert not torchvision_ops.declare_missing()
    assert fake_torchvision == []


def test_without_torchvision_nothing_is_declared(fake_torchvision: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_ops.importlib.util, "find_spec", lambda name: None)
    assert not torchvision_ops.declare_missing()
    assert fake_torchvision == []
