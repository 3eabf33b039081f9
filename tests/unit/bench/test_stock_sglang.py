"""SGLang's own server with the settings of presift's target, up to its start."""

import subprocess
import sys
from itertools import pairwise
from tempfile import TemporaryFile

import pytest
import stock_sglang
from load.servers import PRESIFTS_OWN

from presift.models.folder import ModelFolder
from presift.target import sglang_plugin
from presift.target.sglang.arguments import SglangOptions


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    return ModelFolder(tmp_path, "m", "revision", "fingerprint")


@pytest.mark.parametrize("without", [(), PRESIFTS_OWN], ids=["all", "load"])
def test_it_gets_the_settings_of_presifts_engine(folder, without):
    flags = stock_sglang.flags(SglangOptions(folder, kv_pool_tokens=9000, threads=1, kv_dropping=False), without)
    pairs = dict(pairwise(flags))
    assert pairs["--model-path"] == str(folder.path) and pairs["--max-total-tokens"] == "9000"
    assert pairs["--attention-backend"] == "torch_native" and pairs["--chunked-prefill-size"] == "512"
    assert {"--sleep-on-idle", "--disable-cuda-graph"} <= set(flags)
    assert not {"--disable-radix-cache", "--trust-remote-code", "False", "True"} & set(flags)
    assert ("--weight-version" in flags) == (not without)


def test_the_plugin_is_switched_off(folder, monkeypatch):
    monkeypatch.setenv(sglang_plugin.SWITCH, "1")
    assert stock_sglang.environment(SglangOptions(folder, kv_dropping=False))[sglang_plugin.SWITCH] == "0"


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit('ValueError: no room for the weights')",
        "print('ValueError: no room for the weights', flush=True); raise SystemExit('a child process failed')",
    ],
)
def test_a_server_that_ends_before_it_is_healthy(code):
    with TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        with pytest.raises(ValueError, match=r"plain SGLang ended while it started: ValueError: no room"):
            stock_sglang.wait_until_healthy("http://127.0.0.1:1", process, log)
        stock_sglang.end(process)
