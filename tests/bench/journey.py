"""How far a request travels in the orchestrator before the target is called: files, functions, calls, copies, types.

A real orchestrator runs in this process between the fakes of `tests/contract/fakes`. `sys.setprofile` watches from the
moment the client sends until the fake target's Generate starts, on the last of ROUNDS repetitions. Tasks that are older
than the request do not count; a generator or coroutine that resumes is not a new call.

- files, functions, calls: of `services/presift/orchestrator`; comprehensions and lambdas are functions
- elsewhere: functions in the other packages of presift, those under the fakes included
- replaces: calls of `dataclasses.replace` by all of presift
- value types: the orchestrator's dataclasses that were instantiated; wrappers: those of them that hold another one

`--tree PATH` measures another checkout first: a cell then reads "that checkout -> this one". Each runs in its own
process, with its checkout's `.venv` if there is one. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import dis
import functools
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

import presift
from presift.v1 import plan_pb2

HERE = Path(__file__).resolve().parents[2]
COUNTS = ("files", "functions", "calls", "elsewhere", "replaces", "value types", "wrappers")
ROUNDS, SETTLE_S = 3, 0.2


class Trace:
    """A profiler that counts between `start` and the call of the function whose code is `end`."""

    def __init__(self, tree: Path, end: CodeType) -> None:
        self.presift, self.orchestrator = f"{tree}/services/presift/", f"{tree}/services/presift/orchestrator/"
        self.end, self.active = end, False

    def start(self) -> None:
        self.functions: set[CodeType] = set()
        self.values: list[Any] = []
        self.calls = self.replaces = 0
        self.earlier = weakref.WeakSet(asyncio.all_tasks())
        self.active = True

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self.active and event == "call":
            self.active = frame.f_code is not self.end
            task = asyncio.current_task() if asyncio._get_running_loop() else None  # a thread has no loop
            if self.active and frame.f_lasti <= first_offset(frame.f_code) and task not in self.earlier:
                self._count(frame, frame.f_code)

    def _count(self, frame: FrameType, code: CodeType) -> None:
        if code.co_filename.startswith(self.presift) and "/v1/" not in code.co_filename:
            self.functions.add(code)
            self.calls += code.co_filename.startswith(self.orchestrator)
        elif code is dataclasses.replace.__code__ and frame.f_back is not None:
            self.replaces += frame.f_back.f_code.co_filename.startswith(self.presift)
        if code.co_name == "__init__" and is_value(made := frame.f_locals.get(code.co_varnames[0])):
            self.values.append(made)

    def counts(self) -> dict[str, Any]:
        entered = [code for code in self.functions if code.co_filename.startswith(self.orchestrator)]
        files = {code.co_filename.removeprefix(self.orchestrator) for code in entered}
        types = {type(value) for value in self.values}
        held = ((type(v), getattr(v, field.name, None)) for v in self.values for field in dataclasses.fields(v))
        wrappers = {holder for holder, value in held if is_value(value)}
        elsewhere = len(self.functions) - len(entered)
        numbers = (len(files), len(entered), self.calls, elsewhere, self.replaces, len(types), len(wrappers))
        names = {"file names": sorted(files), "type names": sorted(each.__name__ for each in types)}
        return dict(zip(COUNTS, numbers, strict=True)) | names


@functools.cache
def first_offset(code: CodeType) -> int:
    """Where a call begins. A generator or coroutine that resumes is beyond it."""
    return next((each.offset for each in dis.get_instructions(code) if each.opname == "RESUME"), 0)


def is_value(value: object) -> bool:
    return type(value).__module__.startswith("presift.orchestrator") and dataclasses.is_dataclass(value)


def requests(first: int, stack: Any, kv_stack: Any) -> Iterator[tuple[str, Any, list[int], Any, tuple[str, str, bool]]]:
    """(name, stack, prompt, options, expected route, cache outcome and continuation), in the order in which to ask."""
    short, prompt, turn = (list(range(first, first + tokens)) for tokens in (20, 100, 120))
    kv, later = {"route": plan_pb2.ROUTE_SPEC_KV}, {"kv": {"continue_prompt_tokens": len(prompt)}}
    yield "full, below the threshold", stack, short, {}, ("FULL", "NOT_USED", False)
    yield "spec_pc, cache miss", stack, prompt, {}, ("SPEC_PC", "MISS", False)
    yield "spec_pc, cache hit", stack, prompt, {}, ("SPEC_PC", "HIT", False)
    yield "spec_kv, cache miss", kv_stack, prompt, kv, ("SPEC_KV", "MISS", False)
    yield "spec_kv, later turn", kv_stack, turn, kv | later, ("SPEC_KV", "NOT_USED", True)
    yield "four routes, cache miss", kv_stack, prompt[1:], {}, ("SPEC_PC", "MISS", False)


async def measure(tree: Path) -> dict[str, dict[str, Any]]:
    from tests.contract.fakes.stack import Options, Stack

    assert presift.__file__.startswith(f"{tree}/"), presift.__file__
    routes = (plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC)
    stacks = [Stack(Options()), Stack(Options(routes=routes))]
    for stack in stacks:
        await stack.start()
        await stack.connect()
    trace, found = Trace(tree, type(stacks[0].target).Generate.__code__), {}
    sys.setprofile(trace)
    threading.setprofile(trace)
    for number in range(ROUNDS):
        for name, stack, prompt, options, expected in requests(100 + 150 * number, *stacks):
            await asyncio.sleep(SETTLE_S)  # what the last request left to do
            trace.start()
            answer = await stack.ask(prompt, **options)
            got = (answer.route, answer.cache, answer.decision.continued)
            assert got == expected and not trace.active, f"{name}: {got}"
            found[name] = trace.counts()
    for stack in stacks:
        await stack.stop()
    return found


def measured(tree: Path) -> dict[str, Any]:
    """`measure` in a process that imports presift and the fakes from `tree`."""
    path = os.pathsep.join(str(tree / each) for each in ("services", "clients/python", "."))
    python = tree / ".venv/bin/python" if (tree / ".venv").exists() else sys.executable
    command = [python, __file__, "--measure", tree]
    environment = os.environ | {"PYTHONPATH": path, "GRPC_VERBOSITY": "NONE"}
    return dict(json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout))


def show(title: str, columns: tuple[str, ...], trees: list[dict[str, dict[str, Any]]]) -> None:
    """A table with a row for each key and "one tree -> the next" in each cell; one JSON line."""
    table = Table("", *columns, title=title)
    for name in trees[0]:
        table.add_row(name, *(" -> ".join(str(tree[name][column]) for tree in trees) for column in columns))
    Console(width=120).print(table)
    print(json.dumps({"bench": title, "trees": trees}))


def main() -> None:
    parser = argparse.ArgumentParser(description="how far a request travels in the orchestrator")
    parser.add_argument("--tree", type=Path, help="another checkout, to compare with this one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return print(json.dumps(asyncio.run(measure(options.measure))))
    show("journey", COUNTS, [measured(tree.resolve()) for tree in (options.tree, HERE) if tree])


if __name__ == "__main__":
    main()
