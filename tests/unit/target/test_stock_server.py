"""SGLang's own server on a plain CPU gets what presift's engine gives SGLang."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from presift.target import stock_server

SHARES = "SGLANG_CPU_OMP_THREADS_BIND"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the server with arguments as SGLang has read them; returns the environment that its processes inherit."""
    environment = {"HOME": "/"}
    monkeypatch.setattr(stock_server, "_numa_nodes", lambda: 1)
    monkeypatch.setattr(os, "environ", environment)

    def run(**arguments: Any) -> dict[str, str]:
        ran: list[Any] = []
        read = SimpleNamespace(**{"device": "cpu", "tp_size": 1, "dp_size": 1, "pp_size": 1} | arguments)
        members = {
            "sglang.launch_server": {"run_server": ran.append},
            "sglang.srt.plugins": {"load_plugins": lambda: None},
            "sglang.srt.server_args": {"prepare_server_args": lambda _: read},
        }
        for name, functions in members.items():
            module = ModuleType(name)
            vars(module).update(functions)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "argv", ["stock_server"])
        stock_server.main()
        assert ran == [read]
        return environment

    return run


@pytest.mark.parametrize("arguments", [{"tp_size": 2}, {"dp_size": 2}, {"tp_size": 2, "dp_size": 2}], ids=str)
def test_each_rank_on_a_cpu_has_cores_of_its_own(run: Any, arguments: dict[str, int]) -> None:
    shares = run(**arguments)[SHARES].split("|")
    assert len(shares) == arguments.get("tp_size", 1) * arguments.get("dp_size", 1)


@pytest.mark.parametrize("arguments", [{}, {"device": "cuda", "tp_size": 2}, {"tp_size": 2, "pp_size": 2}], ids=str)
def test_others_run_as_sglang_chooses(run: Any, arguments: dict[str, Any]) -> None:
    assert SHARES not in run(**arguments)


def test_numa_nodes_are_divided_by_sglang(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_server, "_numa_nodes", lambda: 2)
    assert SHARES not in run(tp_size=2)
    assert SHARES in run(tp_size=3)
