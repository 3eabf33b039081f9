"""One model behind SGLang's own server and behind presift: SmolLM2, with a chat template that renders tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from presift.cli.stack.stack import LocalStack, StackOptions

from ..ports import free_ports
from ..spec_kv.test_stock_server import end, wait_until_healthy
from .requests import TEMPLATE

Body = dict[str, Any]
Ask = Callable[[str, str, Body], httpx.Response]
MODEL = "same"
CONTEXT_TOKENS = 2048
# SGLang's names of the parsers that read the template's calls, and reasoning as the tests' prompts show it.
PARSER, REASONING = "qwen", "qwen3"


@pytest.fixture(scope="session")
def model(presift_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a chat template that renders tools."""
    folder = tmp_path_factory.mktemp("models") / MODEL
    folder.mkdir()
    for file in (presift_home / "models" / "smollm2-135m-instruct").iterdir():
        shutil.copyfile(file, folder / file.name)
    config = folder / "tokenizer_config.json"
    values = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps(values | {"chat_template": TEMPLATE}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


# The servers take 4 GiB, more than may stay taken beside the engines of later tests: hence for one module only.
@pytest.fixture(scope="module")
def sglang(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_ports(1)
    command = [sys.executable, "-m", "presift.target.stock_server", "--model-path", str(model), "--port", str(port)]
    command += ["--dtype", "float32", "--max-total-tokens", "8192", "--context-length", str(CONTEXT_TOKENS)]
    command += ["--grammar-backend", "xgrammar", "--tool-call-parser", PARSER, "--log-level", "error"]
    command += ["--reasoning-parser", REASONING]
    command += ["--chunked-prefill-size", "512", "--max-running-requests", "8"]
    # Else it polls without pause: what runs beside it would wait for a core for minutes.
    command += ["--sleep-on-idle"]
    with (tmp_path_factory.mktemp("sglang") / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(server)


@pytest.fixture(scope="module")
def presift(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = StackOptions(
        draft=str(model),
        target=str(model),
        tokenizer=str(model),
        logs=tmp_path_factory.mktemp("logs"),
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        target_flags=[
            "--dtype=float32",
            "--threads=1",
            f"--context-tokens={CONTEXT_TOKENS}",
            "--kv-pool-tokens=8192",
            f"--tool-call-parser={PARSER}",
            f"--reasoning-parser={REASONING}",
            "--max-running=8",
        ],
    )
    with LocalStack(options, print) as stack:
        yield f"http://{stack.http_addresses[0]}"


@pytest.fixture(scope="session")
def ask() -> Ask:
    """(URL of a server, path, body) -> its reply."""
    return lambda url, path, body: httpx.post(url + path, json={"model": MODEL, **body}, timeout=120)
