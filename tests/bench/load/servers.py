"""The two sides of a load test, as fresh processes: SGLang's own server, and a presift stack with the same engine."""

from __future__ import annotations

import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stock_sglang
from auto_trace import wait_until_calibrated

from presift.cli.stack.stack import LocalStack, StackOptions
from presift.models.folder import resolve
from presift.target.sglang.arguments import SglangOptions
from presift_client import Client

# Of presift's engine arguments, those that change what its answers look like and not how fast they come.
PRESIFTS_OWN = {
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
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "sglang.log").open("ab+") as log:
        url, server = stock_sglang.launch(options, log, without=PRESIFTS_OWN)
        try:
            stock_sglang.wait_until_healthy(url, server, log)
            yield Server(url)
        finally:
            stock_sglang.end(server)


@contextmanager
def presift(target: Path, draft: Path, engine: Mapping[str, Any], logs: Path) -> Iterator[Server]:
    """A presift stack at default settings, calibrated."""
    metrics = f"127.0.0.1:{stock_sglang.free_port()}"
    options = StackOptions(
        draft=str(draft),
        target=str(target),
        tokenizer=str(target),
        logs=logs,
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        start_timeout_s=stock_sglang.START_S,
        target_flags=[f"--{name.replace('_', '-')}={value}" for name, value in engine.items()],
        draft_flags=[f"--device={engine['device']}"] if "device" in engine else [],
        orchestrator_flags=[f"--metrics-listen={metrics}"],
    )
    with LocalStack(options, lambda line: print(line, file=sys.stderr, flush=True)) as stack:
        with Client(stack.address) as client:
            wait_until_calibrated(client)
        yield Server(f"http://{stack.http_addresses[0]}", f"http://{metrics}/metrics")
