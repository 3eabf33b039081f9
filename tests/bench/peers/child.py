"""A peer in an environment of its own: a process that reads requests and writes answers as JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from peers.answering import end, refused

ROOT = Path(__file__).parents[3]
_CHILDREN = Path(__file__).with_name("children")
# A line has a whole document.
_LONGEST_LINE = 1 << 28
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}


class Child:
    """A running child. `peak_mib` is the most resident memory that a request took, None before the first."""

    def __init__(self, name: str, process: Process, log: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._log = log
        self.peak_mib: float | None = None

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises InvalidRequest with the child's error, ValueError if it ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            await self.fail()
        answer = await self.read()
        self.peak_mib = max(self.peak_mib or 0.0, answer.pop("peak_mib"))
        if "error" in answer:
            raise refused(f"{self._name}: {answer['error']}")
        return answer

    async def read(self) -> dict[str, Any]:
        """The next line. Raises ValueError if the child ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await self.fail()
        found: dict[str, Any] = json.loads(line)
        return found

    async def fail(self) -> None:
        """Raise ValueError with the last line that the child wrote to stderr."""
        status = await self._process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"{self._name} ended with status {status}: {last}")


@asynccontextmanager
async def started(name: str, script: str, *arguments: str, root: Path = ROOT) -> AsyncIterator[Child]:
    """The script of the folder `children` in the environment `.venv-NAME`, once it is ready. It ends with the block.

    Raises ValueError, with the command that makes it, if the environment is missing.
    """
    python = root / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        raise ValueError(f"peer {name} needs its packages in {python.parents[1]}, which is not there; run: make peers")
    with TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            python, _CHILDREN / script, *arguments,
            stdin=PIPE, stdout=PIPE, stderr=log, env=os.environ | _OFFLINE, limit=_LONGEST_LINE,
        )  # fmt: skip
        try:
            child = Child(name, process, log)
            await child.read()
            yield child
        finally:
            end(process.pid)
            await process.wait()
