"""Starts SGLang's engine so that each child process is prepared before it imports SGLang, and ends the children.

SGLang spawns its scheduler and detokenizer as new interpreters, which import SGLang while they unpickle their target
function and arguments. presift needs to run code before that. So the targets are `ChildFunction` values: unpickling one
prepares the process, and the target is unpickled before the arguments.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from presift.models.torchvision_ops import declare_missing

log = logging.getLogger(__name__)

# What SGLang's schedulers are called in the list of processes.
_SCHEDULER = "sglang::scheduler"


@dataclass(frozen=True, slots=True)
class ChildFunction:
    """A picklable call of `module.function` that makes SGLang importable in the process that unpickles it."""

    module: str
    function: str

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return prepare, (self.module, self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(self.module), self.function)(*args, **kwargs)


def prepare(module: str, function: str) -> ChildFunction:
    """Rebuild a ChildFunction in a child process, after making SGLang importable there."""
    declare_missing()
    return ChildFunction(module, function)


def run_scheduler(*args: Any, **kwargs: Any) -> None:
    """Run the scheduler process with presift's additions to SGLang."""
    from sglang.srt.managers.scheduler import run_scheduler_process  # noqa: PLC0415 - in the child alone

    from presift.target.cpu import attention, platform  # noqa: PLC0415
    from presift.target.sglang import seeds  # noqa: PLC0415

    # On an error they log the caller's whole grammar. The caller gets the reason.
    for name in ("xgrammar_backend", "grammar_manager"):
        logging.getLogger(f"sglang.srt.constrained.{name}").setLevel(logging.CRITICAL)
    is_plain_cpu = platform.activate() is not None
    seeds.register(is_plain_cpu)
    if is_plain_cpu:
        attention.register()
    run_scheduler_process(*args, **kwargs)


def launch(arguments: dict[str, Any]) -> Any:
    """A started `sglang.Engine`. Imports SGLang and blocks until the model is loaded (tens of seconds).

    Raises what SGLang raises; child processes may remain then (see `kill`).
    """
    declare_missing()
    logging.getLogger("sglang").setLevel(arguments["log_level"].upper())
    with _restored_process_settings():
        from sglang.srt.entrypoints import engine as entrypoint  # noqa: PLC0415 - heavy, and only after declare_missing

        # The parent of the schedulers with data parallelism, which is no member of Engine.
        entrypoint.run_data_parallel_controller_process = ChildFunction(
            "sglang.srt.managers.data_parallel_controller", "run_data_parallel_controller_process"
        )
        members = {
            "run_scheduler_process_func": staticmethod(ChildFunction(__name__, run_scheduler.__name__)),
            "run_detokenizer_process_func": staticmethod(
                ChildFunction("sglang.srt.managers.detokenizer_manager", "run_detokenizer_process")
            ),
        }
        engine = type("PreparedEngine", (entrypoint.Engine,), members)(**arguments)
    # At exit it would kill every child of this process.
    atexit.unregister(engine.shutdown)
    return engine


@contextmanager
def _restored_process_settings() -> Iterator[None]:
    """Undo what SGLang changes in this process: the event loop policy (on import) and the root logger (on start)."""
    policy, root = asyncio.get_event_loop_policy(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(policy)
        root.handlers[:] = handlers
        root.setLevel(level)


def children() -> set[multiprocessing.process.BaseProcess]:
    """The live children of this process that multiprocessing started."""
    return set(multiprocessing.active_children())


def scheduler_ids(parents: Iterable[multiprocessing.process.BaseProcess]) -> list[int]:
    """The process ids of the schedulers that `parents` are or have started, by SGLang's names for them."""
    import psutil  # noqa: PLC0415 - SGLang needs it, other services do not

    family = []
    for parent in parents:
        with suppress(psutil.Error):
            process = psutil.Process(parent.pid)
            family += [process, *process.children(recursive=True)]
    found: list[int] = []
    for process in family:
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(_SCHEDULER):
                found.append(process.pid)
    return found


class ExitWatch:
    """Calls `ended`, in the event loop, when one of the processes `ids` ends. They need not be children.

    Where the system does not allow it, a process is not watched, which is logged.
    """

    def __init__(self, ids: Iterable[int], ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._files: list[int] = []
        for process_id in ids:
            try:
                file = os.pidfd_open(process_id)
            except ProcessLookupError:
                self._loop.call_soon(ended)
                continue
            except OSError as error:
                log.warning("process %d is not watched: %s", process_id, error)
                continue
            self._files.append(file)
            self._loop.add_reader(file, self._read, file, ended)

    def _read(self, file: int, ended: Callable[[], None]) -> None:
        self._loop.remove_reader(file)
        ended()

    def close(self) -> None:
        for file in self._files:
            self._loop.remove_reader(file)
            os.close(file)
        self._files.clear()


def kill(processes: Iterable[multiprocessing.process.BaseProcess], timeout_s: float = 10.0) -> None:
    """Kill `processes` and wait for them. SGLang's own shutdown would kill every child of this process."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout_s)


def close_sockets(engine: Any) -> None:
    """Close the sockets of an engine whose processes have ended, and drop unsent messages. Otherwise this process would
    wait for them at exit.
    """
    manager = engine.tokenizer_manager
    for socket in (manager.send_to_scheduler, manager.recv_from_detokenizer, engine.send_to_rpc):
        if socket is not None:
            socket.close(linger=0)


def remove_files(engine: Any) -> None:
    """Remove the socket files and shared memory of an engine whose processes have ended. SGLang leaves them."""
    from sglang.srt.managers.load_snapshot import shm_path_for  # noqa: PLC0415 - loaded by now

    ports = engine.port_args
    names = [getattr(ports, name) for name in dir(ports) if name.endswith("_ipc_name")]
    sockets = [name.removeprefix("ipc://") for name in names if isinstance(name, str) and name.startswith("ipc://")]
    for path in (*sockets, shm_path_for(ports.instance_id)):
        Path(path).unlink(missing_ok=True)


def stop_resource_tracker() -> None:
    """Stop multiprocessing's resource tracker process, which would otherwise outlive this process for a moment.

    Call it after all children have ended, because they hold its pipe.
    """
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
