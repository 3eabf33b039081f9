"""Load generators and evaluation harnesses, unchanged: bench_serving, guidellm, aiperf; lm-eval and Inspect.

The harnesses have tasks of their own (harness/). vLLM is large and needs CUDA: of `vllm bench serve` only the requests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .conftest import INSPECT, LOAD, PYTHON, SERVICES, TOKENIZER
from .shared import HELLO, MODEL, SUM_ANSWER

FOLDER = Path(__file__).parent / "harness"
# Nothing is downloaded.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
ANSWERS = 6
PROMPT_TOKENS, ANSWER_TOKENS = 32, 16
ENDPOINTS = ["chat/completions", "completions"]


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
        "random-input-len": PROMPT_TOKENS,
        "random-output-len": ANSWER_TOKENS,
        "random-range-ratio": 1,
        "num-prompts": ANSWERS,
        "output-file": tmp_path / "results.jsonl",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    script = [PYTHON, FOLDER / "bench_serving.py", *flags, "--disable-tqdm"]
    output = run(script, tmp_path, PYTHONPATH=SERVICES)
    results = json.loads((tmp_path / "results.jsonl").read_text())
    # By default the benchmark asks for answers of a given length (`ignore_eos`).
    assert (results["completed"], results["total_output_tokens"]) == (ANSWERS, ANSWERS * ANSWER_TOKENS), output
    assert results["mean_ttft_ms"] > 0


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_guidellm(server, tmp_path, path, streams):
    report = tmp_path / "report.json"
    options = {
        "backend": f"kind=openai_http,target={server},model={MODEL},request_format=/v1/{path},stream={streams}",
        "profile": "kind=concurrent,streams=2",
        "constraint": f"kind=max_requests,count={ANSWERS}",
        "tokenizer": f"kind=huggingface_auto,model={TOKENIZER}",
        "data": f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={ANSWER_TOKENS}",
        "output": f"kind=json,path={report}",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    output = run([LOAD / "guidellm", "run", *flags, "--disable-progress"], tmp_path)
    (results,) = json.loads(report.read_text())["benchmarks"]
    counts = {"successful": ANSWERS, "errored": 0, "incomplete": 0, "total": ANSWERS}
    assert results["metrics"]["request_totals"] == counts, output
    answers = results["requests"]["successful"]
    # Like bench_serving, it asks for answers of a given length. The server's counts, not guidellm's own.
    assert [each["output_metrics"]["text_tokens"] for each in answers] == [ANSWER_TOKENS] * ANSWERS
    assert all((each["time_to_first_token_ms"] is not None) == streams for each in answers)


def aiperf(server, folder, *more):
    """Its report, whose values are objects with an average."""
    options = {
        "model": MODEL,
        "url": server,
        "tokenizer": TOKENIZER,
        "concurrency": 2,
        "request-count": ANSWERS,
        "isl": PROMPT_TOKENS,
        "osl": ANSWER_TOKENS,
        "ui": "none",
        "output-artifact-dir": folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [LOAD / "aiperf", "profile", *flags, "--use-server-token-count", "--no-gpu-telemetry", *more]
    # Told to stay offline, it takes no tokenizer from a folder.
    output = run(command, folder, HF_HUB_OFFLINE="", HF_HOME=str(folder / "hf"))
    report = json.loads((folder / "profile_export_aiperf.json").read_text())
    assert (report["request_count"]["avg"], report["error_summary"]) == (ANSWERS, []), output
    return report


def tokens(report):
    return report["total_usage_prompt_tokens"]["avg"], report["total_usage_completion_tokens"]["avg"]


@pytest.mark.parametrize("streams", [("--streaming",), ()])
@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_aiperf(server, tmp_path, kind, streams):
    report = aiperf(server, tmp_path, f"--endpoint-type={kind}", "--extra-inputs=ignore_eos:true", *streams)
    prompt, answer = tokens(report)
    assert answer == ANSWERS * ANSWER_TOKENS
    # The chat template adds tokens.
    assert prompt == ANSWERS * PROMPT_TOKENS if kind == "completions" else prompt > ANSWERS * PROMPT_TOKENS
    assert ("time_to_first_token" in report) == bool(streams)


def test_aiperf_with_usage_in_every_chunk(server, tmp_path):
    options = "--streaming", "--per-chunk-usage", "--use-legacy-max-tokens", "--extra-inputs=ignore_eos:true"
    report = aiperf(server, tmp_path, *options, "--wait-for-model-timeout=60", "--wait-for-model-mode=both")
    assert tokens(report)[1] == ANSWERS * ANSWER_TOKENS


@pytest.mark.parametrize("kind", ["responses", "messages"])
def test_aiperf_with_other_apis(server, tmp_path, kind):
    """Of answers that end by themselves: aiperf reads no usage from Responses' `response.incomplete`."""
    report = aiperf(server, tmp_path, f"--endpoint-type={kind}", "--streaming")
    prompt, answer = tokens(report)
    assert prompt > ANSWERS * PROMPT_TOKENS and 0 < answer < ANSWERS * ANSWER_TOKENS


# What `vllm bench serve` sends to each endpoint, with all its flags for sampling.
SAMPLING = {"top_p": 0.9, "top_k": 20, "min_p": 0.1, "temperature": 0.5, "frequency_penalty": 0.1,
            "presence_penalty": 0.1, "repetition_penalty": 1.1}  # fmt: skip
TEXT = {"prompt": "One two three", "repetition_penalty": 1.0, "max_tokens": ANSWER_TOKENS, "logprobs": None}
CHAT = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "One two three"}]}],
    "max_completion_tokens": ANSWER_TOKENS,
}
VLLM = {
    "text": ("completions", TEXT),
    "text with sampling": ("completions", TEXT | SAMPLING | {"logprobs": 1}),
    "text of token ids": ("completions", TEXT | {"prompt": [5, 6, 7]}),
    "chat": ("chat/completions", CHAT),
    "chat with sampling": ("chat/completions", CHAT | SAMPLING),
}


@pytest.mark.parametrize(("path", "body"), VLLM.values(), ids=VLLM)
def test_requests_of_vllm_bench_serve(server, path, body):
    """The stream is read as vLLM reads it: usage only from a chunk without choices."""
    with httpx.Client(base_url=server, headers={"x-request-id": "bench-1"}) as client:
        model = client.get("/v1/models").json()["data"][0]
        assert model["root"]
        more = {"model": model["id"], "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        answer = client.post(f"/v1/{path}", json=body | more)
    assert answer.status_code == 200, answer.text
    *events, end = answer.text.strip().split("\n\n")
    assert end == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1]["usage"]["completion_tokens"] == ANSWER_TOKENS
    assert chunks[-1]["usage"]["prompt_tokens"] >= 3


def test_tokens_that_vllm_bench_serve_counts(server):
    """It cuts prompts to the server's tokens."""
    with httpx.Client(base_url=server) as client:
        asked = {"model": MODEL, "prompt": "One two three", "add_special_tokens": False}
        found = client.post("/tokenize", json=asked).json()["tokens"]
        cut = client.post("/detokenize", json={"model": MODEL, "tokens": found[:2]})
    assert (len(found), cut.json()["prompt"]) == (3, "One two")


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


def test_inspect(server, tmp_path):
    command = [INSPECT / "inspect", "eval", "inspect_tasks.py"]
    command += [f"--model=openai-api/presift/{MODEL}", f"--log-dir={tmp_path}", "--log-format=json", "--display=plain"]
    output = run(command, FOLDER, PRESIFT_BASE_URL=f"{server}/v1", PRESIFT_API_KEY="none")
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    logs = {log["eval"]["task"]: log for log in found if log["status"] == "success"}
    assert len(found) == len(logs) == 2, output
    for log in found:
        (score,) = log["results"]["scores"]
        assert score["metrics"]["accuracy"]["value"] == 1
    (plain,), (with_a_tool,) = (logs[name]["samples"] for name in ("plain", "with_a_tool"))
    assert plain["output"]["completion"] == HELLO
    assert [message["role"] for message in with_a_tool["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert with_a_tool["output"]["completion"] == SUM_ANSWER
