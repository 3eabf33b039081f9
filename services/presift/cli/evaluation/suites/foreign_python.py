"""The Python that has a suite's packages: presift's own or another one. They are used in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

_CHILD = Path(__file__).with_name("child.py")
_SENTENCES = "punkt_tab"
# A generator that counts nothing for so long repeats an error for ever. Making its words takes 20 s.
_SILENT_S = 300.0
# Endings of environment variables that the packages must not see.
_SECRETS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package: its version, and the folder of its module."""

    version: str
    folder: Path


class ForeignPython:
    """The interpreter at `path`. Raises ValueError, naming it, if it cannot be started or a script in it fails."""

    def __init__(self, path: Path) -> None:
        # A relative path without a folder would be looked up in PATH.
        self._path = path.absolute() if path.exists() else path

    async def packages(
        self, suite: str, modules: Mapping[str, str], without_dependencies: Iterable[str], *, needs_sentences: bool
    ) -> dict[str, Package]:
        """The installed ones of `modules` (distribution -> module), by their distributions.

        Raises ValueError, with the command that installs what is missing. `needs_sentences`: NLTK's data that splits
        texts into sentences is needed too.
        """
        names = [f"{distribution}:{module}" for distribution, module in modules.items()]
        async with self._started("find", *names, *([_SENTENCES] if needs_sentences else [])) as (process, log):
            output, _ = await process.communicate()
            self._check(process, log)
        try:
            found = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError):
            raise ValueError(
                f"suite-python is {self._path}, which is no Python: it ran {_CHILD.name} without a result"
            ) from None
        missing = [name for name in modules if found[name] is None]
        if missing:
            raise ValueError(
                f"suite {suite} needs {', '.join(missing)}, which {self._path} lacks. Install what is missing, or name "
                f"another Python with --suite-python: {self._installation(missing, set(without_dependencies))}"
            )
        if needs_sentences and not found[_SENTENCES]:
            raise ValueError(
                f"suite {suite} needs NLTK's data {_SENTENCES}, which {self._path} does not find. Get it from GitHub: "
                f"{self._command('nltk.downloader', _SENTENCES)}; or from PyPI, where llama-index-core has it: "
                f"{self._command('pip', 'install', '--no-deps', 'llama-index-core')}"
            )
        return {name: Package(found[name]["version"], Path(found[name]["folder"])) for name in modules}

    async def run(
        self, script: Path, arguments: Iterable[str], count: Callable[[str], Awaitable[int]], most_counts: int
    ) -> None:
        """Run a generator to its end. It asks for the tokens of its texts, which `count` counts; after `most_counts`
        of them, or if it asks for nothing, it is ended, because it would not find prompts of the wanted length."""
        async with self._started("run", str(script), *arguments) as (process, log):
            for _ in range(most_counts):
                try:
                    text = await asyncio.wait_for(_next_text(process), _SILENT_S)
                except TimeoutError:
                    raise ValueError(f"{script.name} has made no text for {_SILENT_S:.0f} s") from None
                if text is None:
                    break
                await _answer(process, await count(text))
            else:
                raise ValueError(f"{script.name} finds no prompts of this length (tried {most_counts} texts)")
            await process.wait()
            self._check(process, log)

    @asynccontextmanager
    async def _started(self, *arguments: str) -> AsyncIterator[tuple[Process, IO[bytes]]]:
        """The process and what it writes to stderr. It ends with the block, whatever ends that."""
        environment = {name: value for name, value in os.environ.items() if not _is_own(name)}
        with TemporaryFile() as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    self._path, _CHILD, *arguments, stdin=PIPE, stdout=PIPE, stderr=log, env=environment
                )
            except OSError as error:
                raise ValueError(f"suite-python is {self._path}, which cannot be run: {error.strerror}") from None
            try:
                yield process, log
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    def _check(self, process: Process, log: IO[bytes]) -> None:
        if process.returncode:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"a suite's script failed in {self._path} ({process.returncode}): {last}")

    def _installation(self, missing: list[str], without_dependencies: set[str]) -> str:
        """The commands that install the missing packages."""
        whole = [name for name in missing if name not in without_dependencies]
        alone = [name for name in missing if name in without_dependencies]
        commands = [self._command("pip", "install", *whole)] if whole else []
        commands += [self._command("pip", "install", "--no-deps", *alone)] if alone else []
        return " && ".join(commands)

    def _command(self, *words: str) -> str:
        return shlex.join((str(self._path), "-m", *words))


def _is_own(name: str) -> bool:
    """Whether an environment variable is presift's own or may be a secret."""
    return name.startswith("PRESIFT_") or name.upper().endswith(_SECRETS)


async def _next_text(process: Process) -> str | None:
    """The next text to count; None if the process ended."""
    assert process.stdout is not None
    size = await process.stdout.readline()
    try:
        return (await process.stdout.readexactly(int(size))).decode() if size else None
    except asyncio.IncompleteReadError:
        return None


async def _answer(process: Process, tokens: int) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(b"%d\n" % tokens)
        await process.stdin.drain()
    except ConnectionError:
        # It ended; its exit status says why.
        return
