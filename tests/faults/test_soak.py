"""A soak that must be clean (`--soak-minutes 30` for the long one), and one with a planted leak that must not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from .meter import Holding, complaints
from .soak import soak, soak_plan

CLEAN = Holding(100 << 20, 20, 8, 10, 65_536)


@pytest.mark.faults
@pytest.mark.timeout(0)
async def test_nothing_is_left_of_a_soak(
    tiny_model: Callable[[str], Path], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    minutes = pytestconfig.getoption("--soak-minutes", 2.0)
    report = await soak(soak_plan(tiny_model("tinyq"), tmp_path), 45.0, minutes * 60)
    print(
        f"{report.calls} calls, {report.left} of them restless; errors {dict(report.errors)}", *report.table(), sep="\n"
    )
    assert report.complaints() == []


async def test_a_planted_leak_is_found(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    report = await soak(soak_plan(tiny_model("tinyq"), tmp_path, leaky_target=True, targets=1), 2.0, 10.0)
    found = " ".join(report.complaints())
    for what in ("memory grew", "open files", "asyncio tasks", "KV slots free"):
        assert f"target-0: {what}" in found or (what in found and "target-0" in found), found
    assert "orchestrator" not in found and "draft" not in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"rss_bytes": (104 << 20), "files": 22, "tasks": 12, "threads": 30}, None),
        ({"rss_bytes": 106 << 20}, "memory grew by 6.0% from 100 MiB"),
        ({"files": 40}, "40 open files, 20 before"),
        ({"tasks": 20}, "20 asyncio tasks, 10 before"),
        ({"free_kv_tokens": 65_535}, "65535 KV slots free, 65536 before"),
    ],
)
def test_what_is_complained_of(change: dict[str, int], said: str | None) -> None:
    found = complaints("x", CLEAN, replace(CLEAN, **change))
    assert found == ([] if said is None else [f"x: {said}"])
