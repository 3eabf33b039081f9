"""The load of an engine: seen rarely, never in the way."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from presift.core.generation import EngineLoad
from presift.target.load_meter import EVERY_S, LoadMeter
from presift.target.sglang.engine import SglangEngine


class Engine:
    """Says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def load(self) -> EngineLoad:
        self.asked += 1
        return EngineLoad(self.asked, 0, 0)


def test_it_is_seen_at_most_once_a_second() -> None:
    engine, now = Engine(), [0.0]
    meter = LoadMeter(lambda: now[0])
    seen = []
    for step in (0.0, 0.5, 0.4, 0.2, 5.0, 0.0):
        now[0] += step * EVERY_S
        seen.append(meter.read(engine).running)  # type: ignore[arg-type, union-attr]
    assert seen == [1, 1, 1, 2, 3, 3] and engine.asked == 3


def test_a_failure_is_an_unknown_load_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    now, read = [0.0], LoadMeter(lambda: now[0]).read
    for _ in range(3):
        now[0] += 2 * EVERY_S
        assert read(SimpleNamespace(load=lambda: 1 / 0)) is None  # type: ignore[arg-type]
    assert caplog.text.count("the engine's load cannot be read") == 1


def engine_of(snapshots: list[Any]) -> Any:
    reader = SimpleNamespace(read_all=lambda: snapshots)
    return SimpleNamespace(_manager=SimpleNamespace(load_snapshot_reader=reader))


def test_what_the_scheduler_published() -> None:
    """Names as SGLang's LoadSnapshot has them; slots that only the radix cache holds are not in use."""
    snapshot = SimpleNamespace(num_running_reqs=3, num_waiting_reqs=2, num_used_tokens=700, max_total_num_tokens=1000)
    assert SglangEngine.load(engine_of([snapshot])) == EngineLoad(3, 2, 300, 700)
    assert SglangEngine.load(engine_of([])) is None


def test_sglang_has_these_names() -> None:
    """Read, not imported: that takes seconds."""
    package = importlib.util.find_spec("sglang")
    assert package is not None and package.submodule_search_locations
    source = Path(package.submodule_search_locations[0]) / "srt" / "managers" / "load_snapshot.py"
    classes = {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)}
    fields = {ast.unparse(node.target) for node in classes["LoadSnapshot"].body if isinstance(node, ast.AnnAssign)}
    assert fields >= {"num_running_reqs", "num_waiting_reqs", "num_used_tokens", "max_total_num_tokens"}
