"""Imported by the processes of an engine, as a module of this name."""

from __future__ import annotations

import os

from presift.target.sglang.processes import ChildFunction, prepare


def prepare_with(environment: dict[str, str], module: str, function: str) -> ChildFunction:
    """As `prepare`, with the variables of the process that starts this one: the server was started with others."""
    os.environ.clear()
    os.environ.update(environment)
    return prepare(module, function)
