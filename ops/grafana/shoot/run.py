"""Pictures of the dashboards with real data: a stack of real processes, mixed traffic, a real Prometheus, Chromium.

Needs Debian's prometheus and chromium, node 20 and `npm ci` in this folder. Some fifteen minutes:
    .venv/bin/python ops/grafana/shoot/run.py --minutes 12
Draft and target are both SmolLM2-135M, which a plain CPU can run: so a draft costs what a target's prefill does, and
what is saved in time is saved by the caches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import traffic
import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "prometheus"
MODEL = "smollm2-135m-instruct"
SCRAPE_S = 5
START_S = 300.0
# Small prompts, so that a CPU shows many; every second answer is compared, so that there is an agreement to show.
SMALL = ["--compress-above=160", "--capacity=192", "--kv-capacity=128"]
SETTINGS = {
    "ORCHESTRATOR_GUARD_SHARE": "0.5",
    "ORCHESTRATOR_GUARD_MAX_NEW_TOKENS": "16",
    "ORCHESTRATOR_DRAFT_TIMEOUT_S": "20",
    "TARGET_KV_POOL_TOKENS": "24576",
    "DRAFT_DTYPE": "float32",
    "TARGET_DTYPE": "float32",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="of traffic")
    parser.add_argument(
        "--port", type=int, default=51051, help="the orchestrator's; metrics and Prometheus take 4 after"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "screenshots")
    asked = parser.parse_args()
    asked.out.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="presift-shoot-"))
    print(f"logs and Prometheus' data: {folder}", flush=True)
    prometheus = f"127.0.0.1:{asked.port + 4}"
    with stack(asked.port, folder), scraping(asked.port, prometheus, folder):
        print(dict(traffic.run(f"127.0.0.1:{asked.port}", asked.minutes * 60)), flush=True)
        time.sleep(2 * SCRAPE_S)
        span = ["--seconds", str(round(asked.minutes * 60 - 30)), "--scrape", str(SCRAPE_S)]
        command = [
            "node",
            str(HERE / "shoot.mjs"),
            "--prometheus",
            f"http://{prometheus}",
            "--out",
            str(asked.out),
            *span,
        ]
        return subprocess.run(command, check=False).returncode


@contextlib.contextmanager
def stack(port: int, folder: Path) -> Iterator[None]:
    """`presift up`, ready, with every service's metrics on."""
    settings = SETTINGS | {f"{role.upper()}_METRICS_LISTEN": at for role, at in metrics_of(port).items()}
    environment = (
        os.environ | {"OMP_WAIT_POLICY": "passive"} | {f"PRESIFT_{name}": value for name, value in settings.items()}
    )
    up = [sys.executable, "-c", "from presift.cli.app import main; main()", "up", f"--listen=127.0.0.1:{port}"]
    models = ["--draft", MODEL, "--target", MODEL]
    log = folder / "up.log"
    with started([*up, *models, *SMALL], log, environment) as process:
        wait_for(lambda: "presift is ready" in log.read_text(), process, log)
        yield


@contextlib.contextmanager
def scraping(port: int, listen: str, folder: Path) -> Iterator[None]:
    """Prometheus with presift's own configuration, but for how often it asks and where its targets are told."""
    configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    configuration["scrape_configs"] = [
        job for job in configuration["scrape_configs"] if job["job_name"] == "presift-files"
    ]
    shutil.copy(RULES / "rules.yml", folder)
    (folder / "targets").mkdir()
    targets = [{"targets": [at], "labels": {"job": f"presift-{role}"}} for role, at in metrics_of(port).items()]
    (folder / "targets" / "presift.json").write_text(json.dumps(targets))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    options = [f"--web.listen-address={listen}", f"--storage.tsdb.path={folder / 'data'}"]
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        "--enable-feature=exemplar-storage",
        *options,
    ]
    log = folder / "prometheus.log"
    with started(command, log, dict(os.environ)) as process:
        wait_for(lambda: "Server is ready" in log.read_text(), process, log)
        yield


def metrics_of(port: int) -> dict[str, str]:
    """role -> HOST:PORT of its metrics."""
    return {role: f"127.0.0.1:{port + 1 + i}" for i, role in enumerate(("orchestrator", "draft", "target"))}


@contextlib.contextmanager
def started(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError if the process ends first, TimeoutError after START_S."""
    end = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"ended with code {process.returncode}; see {log}")
        if time.monotonic() > end:
            raise TimeoutError(f"not ready within {START_S:g} s; see {log}")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
