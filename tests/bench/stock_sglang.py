"""SGLang's own server as a process, with the settings of presift's target and without its plugin."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection
from typing import IO

import psutil

from presift.cache import die_with_parent
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment
from presift.target.sglang_plugin import SWITCH

START_S = 600.0
_ERROR = re.compile(r"^[\w.]*(Error|Exception)\b")


def launch(
    options: SglangOptions, log: IO[bytes], without: Collection[str] = ()
) -> tuple[str, subprocess.Popen[bytes]]:
    """Its URL and its process, which ends with the calling thread. `without`: arguments that are left to SGLang.

    It is not healthy yet. What it prints goes to `log`.
    """
    port = free_port()
    # On a plain CPU SGLang's own module does not start; this one only declares what torchvision lacks.
    module = "presift.target.stock_server" if options.device == "cpu" else "sglang.launch_server"
    command = [sys.executable, die_with_parent.__file__, str(os.getpid()), sys.executable, "-m", module]
    command += [*flags(options, without), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(options), start_new_session=True
    )
    return f"http://127.0.0.1:{port}", process


def flags(options: SglangOptions, without: Collection[str] = ()) -> list[str]:
    """The arguments that presift gives the engine, as flags of SGLang's server."""
    found = list[str]()
    for name, value in server_arguments(options).items():
        if name not in without and value is not False:
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


def environment(options: SglangOptions) -> dict[str, str]:
    """That of presift's target, with the plugin switched off."""
    found = dict(os.environ)
    set_environment(options, found)
    return found | {SWITCH: "0"}


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Raises ValueError with SGLang's last error if it ends, or needs more than START_S seconds."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if is_healthy(url):
            return
        time.sleep(0.5)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().split("\n")
    # The process that failed says why; the last lines are those of the processes that end because of it.
    said = [line for line in lines if _ERROR.search(line)] or lines
    what = "ended while it started" if process.returncode is not None else f"did not start within {START_S:.0f} s"
    raise ValueError(f"plain SGLang {what}: {said[-1]}")


def is_healthy(url: str) -> bool:
    """Whether a server answers at `url`."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=30):
        return True
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its descendants."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    for each in family:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait(30)


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
