"""Plans and policies for the tests that drive real SGLang engines with KV plans."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.target.sglang import processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and find_spec("sglang") is None:
            item.add_marker(pytest.mark.skip(reason="needs SGLang"))


@pytest.fixture(scope="session")
def plan() -> Callable[..., KvPlan]:
    """The plan of TARGET_LOOKAHEAD with `capacity` and `window` KV pairs."""

    def build(capacity: int, window: int = 16, lookahead: tuple[int, ...] = (3, 1, 4, 1, 5), **others: Any) -> KvPlan:
        return KvPlan(SpecKv(capacity=capacity, window=window), lookahead_token_ids=lookahead, **others)

    return build


@pytest.fixture(scope="session")
def renewing() -> Callable[..., KvPlan]:
    """A plan of window 16 that renews every `every` tokens by the newest `window`, after `first` on the full KV."""

    def build(capacity: int, every: int = 6, window: int = 12, first: int = 0, **others: Any) -> KvPlan:
        policy = SpecKv(capacity, window=16, renew_every=every, renew_window=window, first_full_tokens=first)
        return KvPlan(policy, **others)

    return build


@pytest.fixture
def run_as_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let engines that start from now on run a module of this source in their scheduler process."""

    def run(source: str) -> None:
        name = f"scheduler_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        # Where `launch` looks for the scheduler's function.
        monkeypatch.setattr(processes, "__name__", name)

    return run
