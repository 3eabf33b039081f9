"""Engines whose processes fork from one that has imported SGLang.

Two processes of each engine import SGLang, which takes most of its start. Services spawn them, as SGLang does. So do
tests about processes and those of several ranks: SGLang's checker of consensus must be on when it is imported. Here
they fork, and their parent is the server that they fork from.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from presift.target.sglang.arguments import SglangOptions, set_environment
from presift.target.sglang.processes import ChildFunction

_FOLDER = str(Path(__file__).parent)


@contextmanager
def forked(options: SglangOptions) -> Iterator[None]:
    """Within it, engines start that way. The server has the environment of the first of `options`."""
    set_environment(options)
    spawn = multiprocessing.set_start_method

    def fork(method: str | None, force: bool = False) -> None:
        spawn("forkserver" if method == "spawn" else method, force=force)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(_FOLDER)
        patch.setenv("PYTHONPATH", _FOLDER, prepend=os.pathsep)
        multiprocessing.set_forkserver_preload(["engine_imports"])
        patch.setattr(multiprocessing, "set_start_method", fork)
        patch.setattr(ChildFunction, "__reduce__", _with_environment)
        yield


def _with_environment(function: ChildFunction) -> tuple[Any, tuple[dict[str, str], str, str]]:
    import child_environment  # its name in the child

    assert "engine_imports" not in sys.modules
    return child_environment.prepare_with, (dict(os.environ), function.module, function.function)
