"""The libraries for Node: OpenAI's and the AI SDK. `make test-clients` installs them into node/."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.parametrize("name", ["openai", "ai-sdk"])
def test_library(server, name):
    command = ["node", "--test", "--test-reporter=spec", f"{name}.test.js"]
    environment = os.environ | {"PRESIFT_URL": server}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
