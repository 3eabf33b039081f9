"""The load generators: how each sends a trace to a server, and how its report is read. Both are other people's code.

A report is kept as the generator wrote it; `table` reads it by `requests`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]

_ROOT = Path(__file__).parents[3]
_BENCH_SERVING = _ROOT / "tests" / "clients" / "harness" / "bench_serving.py"
# `make .venv-load/.installed`: it needs other versions than presift.
_AIPERF = _ROOT / ".venv-load" / "bin" / "aiperf"
INFINITE = "inf"


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: the requests of `trace` to `url`, at `rate` requests a second (or "inf": all at once), by a Poisson
    process of `seed`. `extra` goes into every body. The generator may write into `folder`."""

    url: str
    model: str
    tokenizer: Path
    trace: Path
    rate: str
    seed: int
    extra: dict[str, Any]
    folder: Path

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trace.read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Sent:
    """One request. `gaps_s`: between the chunks of the answer; a chunk may have several tokens. Tokens are the
    server's counts. `error` is empty for a request whose answer came to its end."""

    first_s: float
    gaps_s: Sequence[float]
    input_tokens: int
    output_tokens: int
    error: str


@dataclass(frozen=True, slots=True)
class Generator:
    """`send` returns the report, and raises RuntimeError if the generator fails. `requests`: what was sent, in any
    order, and `seconds`: from the first request until the last answer, both of a report."""

    send: Callable[[Load], Report]
    requests: Callable[[Report], list[Sent]]
    seconds: Callable[[Report], float]


def _bench_serving(load: Load) -> Report:
    output = load.folder / "bench_serving.jsonl"
    output.unlink(missing_ok=True)
    options = {
        "backend": "sglang-oai-chat",
        "base-url": load.url,
        "model": load.model,
        "tokenizer": load.tokenizer,
        "dataset-name": "openai",
        "dataset-path": load.trace,
        "num-prompts": len(load.bodies),
        "request-rate": load.rate,
        "seed": load.seed,
        # It would send the first prompt, which is measured.
        "warmup-requests": 0,
        "extra-request-body": json.dumps(load.extra),
        "output-file": output,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    _run([sys.executable, _BENCH_SERVING, *flags, "--output-details", "--disable-tqdm"], load.folder)
    report: Report = json.loads(output.read_text())
    # The server's arguments, long; and what the model said.
    return {name: value for name, value in report.items() if name not in {"server_info", "generated_texts"}}


def _bench_serving_requests(report: Report) -> list[Sent]:
    """From the lists of single requests: its sums take prompts of 2 tokens (with transformers 5), and a stream that
    failed for an answer."""
    columns = (report[name] for name in ("ttfts", "itls", "input_lens", "output_lens", "errors"))
    return [Sent(*values) for values in zip(*columns, strict=True)]


def _aiperf(load: Load) -> Report:
    payloads = load.folder / "payloads.jsonl"
    rows = [{"model": load.model, "stream": True, **body, **load.extra} for body in load.bodies]
    payloads.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model": load.model,
        "url": load.url,
        "tokenizer": load.tokenizer,
        "endpoint-type": "chat",
        "custom-dataset-type": "raw-payload",
        "input-file": payloads,
        "dataset-sampling-strategy": "sequential",
        "request-count": len(rows),
        "random-seed": load.seed,
        "ui": "none",
        "output-artifact-dir": load.folder,
        **({"concurrency": len(rows)} if load.rate == INFINITE else {"request-rate": load.rate}),
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [_AIPERF, "profile", *flags, "--streaming", "--use-server-token-count", "--no-gpu-telemetry"]
    # If it is to stay offline, it takes no tokenizer from a folder.
    _run(command, load.folder, HF_HUB_OFFLINE="", HF_HOME=str(load.folder / "hf"))
    records = [json.loads(line) for line in (load.folder / "profile_export.jsonl").read_text().splitlines()]
    return {"summary": json.loads((load.folder / "profile_export_aiperf.json").read_text()), "records": records}


def _aiperf_requests(report: Report) -> list[Sent]:
    return [_aiperf_request(record.get("metrics", {}), record.get("error")) for record in report["records"]]


def _aiperf_request(metrics: dict[str, Any], error: object) -> Sent:
    values = {name: metric["value"] for name, metric in metrics.items()}
    return Sent(
        values.get("time_to_first_token", 0.0) / 1e3,
        [gap / 1e3 for gap in values.get("inter_chunk_latency", ())],
        values.get("usage_prompt_tokens", 0),
        values.get("usage_completion_tokens", 0),
        str(error or ""),
    )


def _aiperf_seconds(report: Report) -> float:
    """Its own throughput counts the time until it notices that all have ended, too."""
    times = [record["metadata"] for record in report["records"]]
    return (max(each["request_end_ns"] for each in times) - min(each["request_start_ns"] for each in times)) / 1e9


GENERATORS = {
    "bench_serving": Generator(_bench_serving, _bench_serving_requests, lambda report: float(report["duration"])),
    "aiperf": Generator(_aiperf, _aiperf_requests, _aiperf_seconds),
}


def _run(command: Sequence[object], folder: Path, **environment: str) -> None:
    values = os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"} | environment
    log = folder / "generator.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            [str(word) for word in command], cwd=folder, env=values, stdout=stream, stderr=stream, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{command[1]} ended with status {done.returncode}; see {log}")
