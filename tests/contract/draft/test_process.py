"""`python -m presift.draft` as a process: any folder, ready once it scored, drained on SIGTERM, clear when it fails."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.v1 import draft_pb2, draft_pb2_grpc, plan_pb2

SPEC_PC = plan_pb2.SpecPc(capacity=64, start_layer=1)
POLICY = plan_pb2.Policy(spec_pc=SPEC_PC)
CASCADE = plan_pb2.Policy(
    spec_kv_pc=plan_pb2.SpecKvPc(prompt=SPEC_PC, kv=plan_pb2.SpecKv(capacity=40, lookahead_tokens=4))
)


@pytest.fixture
def start(tmp_path):
    """flags -> (process, its log file); whatever still runs is killed at the end."""
    processes = []

    def run(*flags):
        log = (tmp_path / f"{len(processes)}.log").open("w+")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "presift.draft", "--listen", "127.0.0.1:0", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        processes.append(process)
        return process, log

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def _ready(process):
    line = process.stdout.readline()
    found = re.fullmatch(r"presift draft ready on (127\.0\.0\.1:\d+): (\S+), (\S+)\n", line)
    assert found, line
    return found.groups()


def test_any_folder_is_served_and_drained(start, tiny_model):
    process, log = start("--model", str(tiny_model("tinyq")), "--dtype", "float32", "--threads", "1")
    address, name, dtype = _ready(process)
    assert (name, dtype) == ("tinyq", "float32")
    with grpc.insecure_channel(address) as channel:
        question = health_pb2.HealthCheckRequest(service="presift.v1.DraftService")
        health = health_pb2_grpc.HealthStub(channel).Check(question)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        reply = stub.Score(draft_pb2.ScoreRequest(token_ids=range(1, 301), policy=POLICY, lookahead_tokens=4))
        # With another salt nothing is kept of the first prompt: the results are equal to the last bit.
        cascade = stub.Score(draft_pb2.ScoreRequest(token_ids=range(1, 301), policy=CASCADE, cache_salt="other"))
        again = stub.Score(draft_pb2.ScoreRequest(token_ids=range(1, 301), policy=POLICY, lookahead_tokens=4))
    assert reply.token_mask.prompt_tokens == 300
    assert len(reply.lookahead_token_ids) == 4
    assert 0 < reply.coverage < 1
    for same in (reply, cascade):
        same.ClearField("timings")
    assert cascade == reply
    assert again.cached_tokens > 200 and again.token_mask == reply.token_mask
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    log.seek(0)
    assert "Traceback" not in log.read()


def test_a_sigterm_stops_it_while_a_long_prompt_is_read(start, tiny_model):
    flags = ("--dtype", "float32", "--chunk-tokens", "16", "--drain-s", "0")
    process, _ = start("--model", str(tiny_model("tinyq")), *flags)
    address, *_ = _ready(process)
    with grpc.insecure_channel(address) as channel:
        call = draft_pb2_grpc.DraftServiceStub(channel).Score.future(
            draft_pb2.ScoreRequest(token_ids=[7] * 3800, policy=POLICY, lookahead_tokens=250)
        )
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert call.done() or call.exception(5)


def test_a_folder_that_is_no_model_is_refused_by_name(start, tmp_path):
    process, log = start("--model", str(tmp_path))
    assert process.wait(60) == 1
    log.seek(0)
    text = log.read()
    assert "a folder with config.json and *.safetensors" in text
    assert "Traceback" not in text
    assert process.stdout.read() == ""


def test_an_address_in_use_is_refused_by_name(start, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process, log = start("--model", str(tiny_model("tinyq")), "--listen", address)
        assert process.wait(60) == 1
    log.seek(0)
    assert "cannot listen on" in log.read()
