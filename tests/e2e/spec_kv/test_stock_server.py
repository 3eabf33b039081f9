"""The plugin in SGLang's own HTTP server, without any service of presift: the example that the README shows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ..ports import free_ports

EXAMPLE = Path(__file__).parents[3] / "clients" / "python" / "examples" / "stock_sglang.py"


@pytest.fixture(scope="module")
def url(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("stock")
    for file in tiny_model("tinyq").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    # A folder as one finds it on the hub; the reference's says no architecture.
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
    port = free_ports(1)
    command = [sys.executable, "-m", "presift.target.stock_server", "--model-path", str(folder), "--port", str(port)]
    command += ["--skip-tokenizer-init", "--dtype", "float32", "--max-total-tokens", "4096", "--log-level", "error"]
    command += ["--sleep-on-idle"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(server)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.5)
    raise AssertionError("the server did not become healthy")


def end(server: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.kill()
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    server.wait(30)


def test_the_example_drops_kv_and_finds_its_entry_again(url: str) -> None:
    output = subprocess.run([sys.executable, EXAMPLE, url], capture_output=True, text=True, timeout=120, check=True)
    lines = output.stdout.splitlines()

    assert lines[0].endswith("300 KV tokens held, 0 cached")
    assert "65 KV tokens held" in lines[1]
    assert "of 300 prompt tokens" in lines[2]
    assert lines[2].endswith("reused entry: False")
    assert lines[4].endswith("reused entry: True")
    # The answer of the same entry is the same.
    assert lines[1].split(": ")[1].split("]")[0] == lines[3].split(": ")[1].split("]")[0]


def test_a_wrong_parameter_is_a_bad_request_that_says_why(url: str) -> None:
    body = {"input_ids": list(range(200)), "sampling_params": {"custom_params": {"presift": '{"capacity": 4}'}}}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)

    assert refusal.value.code == 400
    assert "spec_kv.capacity is 4" in refusal.value.read().decode()


def test_the_plugin_has_checked_itself_and_says_what_it_holds(url: str) -> None:
    with urllib.request.urlopen(f"{url}/get_server_info", timeout=60) as answer:
        state = json.load(answer)["internal_states"][0]["presift"]

    assert (state["unsupported"], state["checking"]) == (None, False)
    assert (state["runs"], state["leases"], state["waiting"]) == (0, 0, 0)
