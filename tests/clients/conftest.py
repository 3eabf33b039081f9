"""A presift with a scripted engine. presift runs in its own environment, the libraries in that of these tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# LiteLLM asks the internet for prices as it is imported; telemetry and tracing of others are off as well.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("PRESIFT_PYTHON", ROOT / ".venv/bin/python"))
# The commands in environments of their own.
LOAD, INSPECT = ROOT / ".venv-load/bin", ROOT / ".venv-inspect/bin"
SERVICES = str(ROOT / "services")
_HOME = Path(os.environ.get("PRESIFT_HOME", "~/.cache/presift")).expanduser()
TOKENIZER = _HOME / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of the HTTP API, without /v1. `PRESIFT_URL` names one that runs already."""
    if url := os.environ.get("PRESIFT_URL"):
        yield url
        return
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), SERVICES))}
    command = [PYTHON, "-m", "tests.clients.stack", TOKENIZER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        yield url
        process.stdin.close()


@pytest.fixture(scope="session")
def base_url(server: str) -> str:
    """What applications set as base_url."""
    return f"{server}/v1"
