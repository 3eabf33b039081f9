"""Pictures of the dashboards with real data: a stack of real processes, mixed traffic, a real Prometheus, Chromium.

Needs Debian's prometheus and chromium, node 20 and `npm ci` in this folder. Some fifteen minutes:
    .venv/bin/python ops/grafana/shoot/run.py --minutes 12
Draft and target are both SmolLM2-135M, which a plain CPU can run: so a draft costs what a target's prefill does, and
what is saved in time is saved by the caches. --tiny takes the tests' tiny random models instead, which answer much more
on a busy machine, and nonsense: what such pictures say of quality and savings means nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import traffic
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "prometheus"
MODEL = "smollm2-135m-instruct"
SCRAPE_S = 5
START_S = 600.0
TINY = HERE.parents[2] / "tests" / "reference" / "data"
UP = [sys.executable, "-c", "from presift.cli.app import main; main()", "up"]
# Two drafts, so that there is one to choose; small prompts, so that a CPU shows many.
SMALL = ["--drafts=2", "--compress-above=160", "--capacity=192", "--kv-capacity=160"]
# Every second answer is compared, so that there is an agreement to show; float32 is what a plain CPU is quick at.
SETTINGS = {
    "ORCHESTRATOR_GUARD_SHARE": "0.5",
    "ORCHESTRATOR_CASCADE_CAPACITY": "256",
    "ORCHESTRATOR_GUARD_MAX_NEW_TOKENS": "16",
    "TARGET_KV_POOL_TOKENS": "24576",
    "TARGET_DTYPE": "float32",
    "DRAFT_DTYPE": "float32",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="of traffic")
    parser.add_argument("--callers", type=int, default=3, help="who ask at once")
    parser.add_argument("--tiny", action="store_true", help="models of random weights")
    parser.add_argument("--port", type=int, default=51051, help="the orchestrator's; the next nine are taken too")
    parser.add_argument("--out", type=Path, default=HERE.parent / "screenshots")
    asked = parser.parse_args()
    asked.out.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="presift-shoot-"))
    print(f"logs and Prometheus' data: {folder}", flush=True)
    seconds, model = asked.minutes * 60, tiny_model(folder) if asked.tiny else MODEL
    with (
        stack(asked.port, model, folder) as targets,
        scraping(targets, f"127.0.0.1:{asked.port + 9}", folder) as prometheus,
    ):
        print(dict(traffic.run(f"127.0.0.1:{asked.port}", seconds, asked.callers)), flush=True)
        time.sleep(2 * SCRAPE_S)
        shoot = ["node", str(HERE / "shoot.mjs"), "--prometheus", prometheus, "--out", str(asked.out.resolve())]
        span = ["--seconds", f"{seconds - 30:.0f}", "--scrape", str(SCRAPE_S)]
        return subprocess.run([*shoot, *span], check=False).returncode


def tiny_model(folder: Path) -> str:
    """The tests' random Qwen2 of four layers, its tokens the bytes of a text."""
    (folder / "tinyq").mkdir()
    shutil.copy(TINY / "tinyq.config.json", folder / "tinyq" / "config.json")
    shutil.copy(TINY / "tinyq.safetensors", folder / "tinyq" / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tinyq" / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}answer:"
    configuration = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tinyq" / "tokenizer_config.json").write_text(json.dumps(configuration))
    return str(folder / "tinyq")


@contextlib.contextmanager
def stack(port: int, model: str, folder: Path) -> Iterator[Path]:
    """`presift up`, ready, every service with its metrics. Gives the file that names them for Prometheus."""
    environment = os.environ | {f"PRESIFT_{name}": value for name, value in SETTINGS.items()}
    where = [f"--listen=127.0.0.1:{port}", "--observability", f"--metrics-from={port + 1}"]
    log = folder / "up.log"
    with started([*UP, "--draft", model, "--target", model, *SMALL, *where], log, environment) as process:
        wait_for(lambda: "presift is ready" in log.read_text(), process, log)
        found = re.search(r"\(file_sd\): (.+\.json)", log.read_text())
        if found is None:
            raise RuntimeError(f"no targets for Prometheus; see {log}")
        yield Path(found[1])


@contextlib.contextmanager
def scraping(targets: Path, listen: str, folder: Path) -> Iterator[str]:
    """Prometheus with presift's own configuration, but for how often it asks, and that files alone name targets."""
    configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    jobs = configuration["scrape_configs"]
    configuration["scrape_configs"] = [job for job in jobs if job["job_name"] == "presift-files"]
    shutil.copy(RULES / "rules.yml", folder)
    (folder / "targets").mkdir()
    shutil.copy(targets, folder / "targets")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    log = folder / "prometheus.log"
    command = ["prometheus", *options, f"--web.listen-address={listen}", "--enable-feature=exemplar-storage"]
    with started(command, log, os.environ.copy()) as process:
        wait_for(lambda: "Server is ready" in log.read_text(), process, log)
        yield f"http://{listen}"


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that tells all to `log`, ended as by Ctrl-C."""
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
