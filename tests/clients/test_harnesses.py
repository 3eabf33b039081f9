"""A load generator and an evaluation harness, unchanged: SGLang's bench_serving, and lm-eval with tasks of its own."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import PYTHON, SERVICES, TOKENIZER
from .shared import MODEL

FOLDER = Path(__file__).parent / "harness"
# Nothing is downloaded.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
ANSWERS = 6


def run(command, folder, **environment):
    values = os.environ | OFFLINE | environment
    done = subprocess.run(command, cwd=folder, env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("backend", ["sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat", "lmdeploy", "lmdeploy-chat"])
def test_bench_serving(server, tmp_path, backend):
    options = {
        "backend": backend,
        "base-url": server,
        "model": MODEL,
        "tokenizer": TOKENIZER,
        "dataset-name": "random-ids",
        "random-input-len": 32,
        "random-output-len": 16,
        "random-range-ratio": 1,
        "num-prompts": ANSWERS,
        "output-file": tmp_path / "results.jsonl",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    script = [PYTHON, FOLDER / "bench_serving.py", sysconfig.get_path("purelib"), *flags, "--disable-tqdm"]
    output = run(script, tmp_path, PYTHONPATH=SERVICES)
    results = json.loads((tmp_path / "results.jsonl").read_text())
    # By default the benchmark asks for answers of a given length (`ignore_eos`).
    assert (results["completed"], results["total_output_tokens"]) == (ANSWERS, ANSWERS * 16), output
    assert results["mean_ttft_ms"] > 0


def evaluate(server, folder, kind, path, tasks, *more):
    arguments = f"model={MODEL},base_url={server}/v1/{path},num_concurrent=2,max_retries=1"
    if kind == "local-completions":
        arguments += f",tokenizer={TOKENIZER}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments]
    command += ["--tasks", tasks, "--include_path", FOLDER, "--output_path", folder, *more]
    run(command, FOLDER, HF_HOME=str(folder / "hf"))
    (found,) = folder.rglob("results_*.json")
    return json.loads(found.read_text())["results"]


def test_lm_eval_completions(server, tmp_path):
    tasks = "tiny_generate,tiny_choice"
    results = evaluate(server, tmp_path, "local-completions", "completions", tasks, "--batch_size=2")
    assert results["tiny_generate"]["exact_match,none"] == 1
    assert results["tiny_choice"]["acc,none"] == 1


def test_lm_eval_chat(server, tmp_path):
    chat = "local-chat-completions", "chat/completions"
    results = evaluate(server, tmp_path, *chat, "tiny_generate", "--apply_chat_template")
    assert results["tiny_generate"]["exact_match,none"] == 1
