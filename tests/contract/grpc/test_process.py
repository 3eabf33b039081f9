"""`python -m presift.orchestrator` with a draft of another vocabulary: what the settings wire, and what they refuse."""

import asyncio
import os
import sys

import grpc
import pytest

from presift.core.fingerprint import fingerprint
from presift.v1 import orchestrator_pb2_grpc

from ..fakes.services import model
from ..fakes.stack import ALL_ROUTES, Answer, byte_tokenizer, quad_tokenizer, request


@pytest.fixture
async def start():
    """flags -> the process; it is killed at the end."""
    processes = []

    async def start(*flags):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "presift.orchestrator", "--listen", "127.0.0.1:0", *flags]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def folders(tmp_path):
    """name -> the folder of a tokenizer."""
    made = {}
    for name, backend in (("target", byte_tokenizer()), ("draft", quad_tokenizer())):
        made[name] = tmp_path / name
        made[name].mkdir()
        backend.save(str(made[name] / "tokenizer.json"))
        (made[name] / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return made


def info(folder, name):
    return model(name, tokenizer_fingerprint=fingerprint((folder / "tokenizer.json").read_bytes()))


async def test_a_draft_of_another_vocabulary_is_served(start, build, folders):
    models = {name: info(folders[name], name) for name in ("draft", "target")}
    stack = await build(**models, routes=ALL_ROUTES)
    addresses = [f"--{name}-address=127.0.0.1:{port}" for name, port in stack.ports.items()]
    tokenizers = [f"--tokenizer={folders['target']}", f"--draft-tokenizer={folders['draft']}"]
    process = await start(
        *(*addresses, *tokenizers, "--cross-vocabulary", "--no-calibrate"),
        *("--capacity=16", "--window=4", "--compress-above-tokens=32"),
    )
    ready = (await process.stdout.readline()).decode()
    async with grpc.aio.insecure_channel(ready.partition(" ready on ")[2].rpartition(": ")[0]) as channel:
        call = orchestrator_pb2_grpc.OrchestratorServiceStub(channel).Generate(request("abcd" * 25))
        answer = Answer.of([event async for event in call])
    assert answer.decision.cross_vocabulary, answer.decision
    assert list(stack.draft.calls[0].token_ids) == [0] * 25


async def test_cross_vocabulary_without_a_tokenizer_is_refused_at_start(start):
    process = await start("--cross-vocabulary")
    _, log = await process.communicate()
    assert process.returncode == 1 and "draft_tokenizer" in log.decode()
