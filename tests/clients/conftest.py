"""A presift with a scripted engine. presift runs in its own environment, the libraries in that of these tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MODEL = "scripted"
# LiteLLM asks the internet for prices as it is imported; telemetry and tracing of others are off as well.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}

_ROOT = Path(__file__).parents[2]
_PYTHON = Path(os.environ.get("PRESIFT_PYTHON", _ROOT / ".venv/bin/python"))
_HOME = Path(os.environ.get("PRESIFT_HOME", "~/.cache/presift")).expanduser()
_TOKENIZER = _HOME / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of the HTTP API, without /v1. `PRESIFT_URL` names one that runs already."""
    if url := os.environ.get("PRESIFT_URL"):
        yield url
        return
    folders = [str(_ROOT / folder) for folder in (".", "services", "clients/python", "ops/demo")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [_PYTHON, "-m", "tests.clients.stack", _TOKENIZER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=_ROOT, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        yield url
        process.stdin.close()


@pytest.fixture(scope="session")
def base_url(server: str) -> str:
    """What applications set as base_url."""
    return f"{server}/v1"
