"""The two sides of a load test, as fresh processes: SGLang's own server, and a presift stack with the same engine."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from auto_trace import wait_until_calibrated

from presift.cache import die_with_parent
from presift.cli.stack.stack import LocalStack, StackOptions
from presift.models.folder import resolve
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment
from presift.target.sglang_plugin import SWITCH
from presift_client import Client

START_S = 600.0
# Of presift's engine arguments, those that change what its answers look like and not how fast they come.
_PRESIFTS_OWN = {
    "weight_version",
    "skip_tokenizer_init",
    "incremental_streaming_output",
    "tool_call_parser",
    "reasoning_parser",
}


@dataclass(frozen=True, slots=True)
class Server:
    """`url` without /v1. `metrics`: the URL of the orchestrator's, empty for SGLang."""

    url: str
    metrics: str = ""

    def applied(self) -> dict[str, int]:
        """How many requests each route has answered since the start."""
        if not self.metrics:
            return {}
        with urllib.request.urlopen(self.metrics, timeout=60) as answer:
            return applied(answer.read().decode())


def applied(metrics: str) -> dict[str, int]:
    """By route, from Prometheus' text format."""
    found = Counter[str]()
    for labels, value in re.findall(r"^presift_requests_total\{(.*)\} (\S+)$", metrics, re.MULTILINE):
        route = re.search(r'presift_route="([^"]*)"', labels)
        found[route[1] if route else ""] += int(float(value))
    return dict(found)


@contextmanager
def sglang(target: Path, engine: Mapping[str, Any], logs: Path) -> Iterator[Server]:
    """SGLang's own server, without the plugin. `engine`: fields of SglangOptions, for both sides."""
    options = SglangOptions(resolve(str(target)), kv_dropping=False, **engine)
    environment = dict(os.environ)
    set_environment(options, environment)
    port = _free_port()
    # On a plain CPU SGLang's own module does not start; this one only declares what torchvision lacks.
    module = "presift.target.stock_server" if options.device == "cpu" else "sglang.launch_server"
    command = [sys.executable, die_with_parent.__file__, str(os.getpid()), sys.executable, "-m", module]
    command += [*sglang_flags(options), "--host", "127.0.0.1", "--port", str(port)]
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "sglang.log").open("ab") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | {SWITCH: "0"}
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", server, logs)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        _end(server)


def sglang_flags(options: SglangOptions) -> list[str]:
    """The arguments that presift gives the engine, as flags of SGLang's server."""
    flags = list[str]()
    for name, value in server_arguments(options).items():
        if name not in _PRESIFTS_OWN and value is not False:
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


@contextmanager
def presift(target: Path, draft: Path, engine: Mapping[str, Any], logs: Path) -> Iterator[Server]:
    """A presift stack at default settings, calibrated."""
    metrics = f"127.0.0.1:{_free_port()}"
    options = StackOptions(
        draft=str(draft),
        target=str(target),
        tokenizer=str(target),
        logs=logs,
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        start_timeout_s=START_S,
        target_flags=[f"--{name.replace('_', '-')}={value}" for name, value in engine.items()],
        draft_flags=[f"--device={engine['device']}"] if "device" in engine else [],
        orchestrator_flags=[f"--metrics-listen={metrics}"],
    )
    with LocalStack(options, lambda line: print(line, file=sys.stderr, flush=True)) as stack:
        with Client(stack.address) as client:
            wait_until_calibrated(client)
        yield Server(f"http://{stack.http_addresses[0]}", f"http://{metrics}/metrics")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], logs: Path) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=30):
            return
        time.sleep(0.5)
    raise RuntimeError(f"SGLang did not start; see {logs / 'sglang.log'}")


def _end(server: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.kill()
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(family, timeout=30)
    server.wait(30)
