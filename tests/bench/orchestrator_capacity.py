"""Processor time that an orchestrator takes for a request, for each prompt token and for each token of the answer: what
`presift plan` reckons orchestrators by.

Real processes: the orchestrator with a real tokenizer, an echo target that takes no time. Texts in, texts out, every
prompt new, eight callers. The target sends a token at a time, as slowly as it costs most. Prints a table and one JSON
line; `--model` is a folder with a tokenizer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from echo_engine import ECHO_MODEL, EchoEngine
from rich.console import Console
from rich.table import Table

import presift
from presift.cli.stack.process import ServiceProcess
from presift.models.folder import resolve
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import target_pb2_grpc
from presift_client import AsyncClient

CALLERS, REQUESTS, ROUNDS = 8, 64, 3
# Words of the prompt, tokens of the answer.
SHORT, LONG = 64, 2_000
FEW, MANY = 1, 257


async def serve(model: str) -> None:
    """The target, until SIGTERM."""
    folder = resolve(model)
    info = replace(
        ECHO_MODEL, context_tokens=65_536, vocabulary_size=49_152, tokenizer_fingerprint=folder.tokenizer_fingerprint
    )
    server = GrpcServer(ServerOptions("127.0.0.1:0", drain_s=1.0), ["presift.v1.TargetService"])
    servicer = TargetServicer(Admission(64, 1024))
    servicer.use(EchoEngine(model=info, token_delay_s=0.001))
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    await server.set_serving(True)
    print(f"presift target ready on 127.0.0.1:{port}: echo", flush=True)
    await server.run_until_stopped()


async def ask(address: str, words: int, answer_tokens: int, seed: int) -> int:
    """Prompt tokens of all requests together."""
    asked = iter(range(REQUESTS))
    read = 0

    async def caller() -> None:
        nonlocal read
        async with AsyncClient(address) as client:
            for number in asked:
                picked = np.random.default_rng((seed, number)).integers(0, 1000, words)
                prompt = " ".join(f"word{word}" for word in picked)
                answer = await client.generate(
                    prompt=prompt, route="full", max_new_tokens=answer_tokens, ignore_eos=True, deadline_s=300
                )
                assert answer.usage.completion_tokens == answer_tokens, answer.usage
                read += answer.decision.prompt_tokens

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(Path.home() / ".cache/presift/models/smollm2-135m-instruct"))
    model = parser.parse_args().model
    rows = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        source = str(Path(presift.__file__).parents[1])
        paths = (*map(str, Path(__file__).parents[:2]), source, os.environ.get("PYTHONPATH", ""))
        environment = {"PYTHONPATH": os.pathsep.join(paths)}

        def launch(module: str, flags: list[str]) -> ServiceProcess:
            service = ServiceProcess(module, module, flags, Path(folder) / f"{module}.log", environment)
            stack.callback(service.stop, 5.0)
            service.wait_ready(60.0)
            return service

        target = launch(Path(__file__).stem, ["--serve", model])
        flags = ["--listen=127.0.0.1:0", f"--target-address={target.address}", "--draft-address=127.0.0.1:1"]
        orchestrator = launch("presift.orchestrator", [*flags, f"--tokenizer={model}", "--no-calibrate"])
        process = psutil.Process(orchestrator.pid)
        asyncio.run(ask(orchestrator.address, SHORT, FEW, 0))
        for seed in range(1, ROUNDS + 1):
            for words, answer_tokens in ((SHORT, FEW), (LONG, FEW), (SHORT, MANY)):
                before = sum(process.cpu_times()[:2])
                read = asyncio.run(ask(orchestrator.address, words, answer_tokens, seed * 1000 + words))
                rows.append((read / REQUESTS, answer_tokens, (sum(process.cpu_times()[:2]) - before) / REQUESTS * 1000))
    features = np.array([[1.0, tokens, answer] for tokens, answer, _ in rows])
    fitted, *_ = np.linalg.lstsq(features, np.array([ms for *_, ms in rows]), rcond=None)
    table = Table("prompt tokens", "answer tokens", "processor ms a request", title="orchestrator, processor time")
    for tokens, answer, ms in rows:
        table.add_row(f"{tokens:,.0f}", str(answer), f"{ms:.2f}")
    Console().print(table)
    found = dict(zip(("request_ms", "prompt_token_ms", "answer_token_ms"), np.round(fitted, 5).tolist(), strict=True))
    row = {"bench": "orchestrator_capacity", "cpu": platform.processor(), "load": os.getloadavg()[0]}
    print(json.dumps(row | found))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(serve(sys.argv[2]))
    else:
        main()
