"""Throughput of scoring with 2 drafts against 1, through two orchestrators: is a second draft worth its machine?

The drafts are processes that take a fixed time for each prompt, one after another, as a model on a device of its own
does; so that few cores measure the middleware, not themselves. Every prompt is new. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from echo_engine import ECHO_MODEL, EchoEngine
from rich.console import Console
from rich.table import Table

import presift
from presift.cache.embedded import embedded_cache
from presift.cli.stack.process import ServiceProcess
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import draft_pb2, draft_pb2_grpc, plan_pb2, target_pb2_grpc
from presift_client import AsyncClient

ORCHESTRATORS, CALLERS, PROMPT_TOKENS, CAPACITY = 2, 16, 1000, 64
ROUTES = (plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC)
MODEL = plan_pb2.ModelInfo(
    id="simulated", revision="1", context_tokens=ECHO_MODEL.context_tokens, layers=1, kv_heads=1, vocabulary_size=512
)


class SlowDraft(draft_pb2_grpc.DraftServiceServicer):
    """Takes `score_s` for a prompt, one prompt at a time, and keeps its last tokens."""

    def __init__(self, score_s: float) -> None:
        self._score_s = score_s
        self._turn = asyncio.Lock()

    async def Score(self, request: Any, context: Any) -> draft_pb2.ScoreResponse:
        asked = time.perf_counter()
        async with self._turn:
            queue_ms = (time.perf_counter() - asked) * 1000
            await asyncio.sleep(self._score_s)
        tokens, kept = len(request.token_ids), request.policy.spec_pc.capacity
        mask = np.arange(tokens) >= tokens - kept
        return draft_pb2.ScoreResponse(
            token_mask=plan_pb2.TokenMask(prompt_tokens=tokens, kept=np.packbits(mask, bitorder="little").tobytes()),
            coverage=0.9,
            model=MODEL,
            timings=draft_pb2.ScoreTimings(queue_ms=queue_ms, prefill_ms=self._score_s * 1000),
        )

    async def GetInfo(self, request: Any, context: Any) -> draft_pb2.DraftServiceGetInfoResponse:
        return draft_pb2.DraftServiceGetInfoResponse(model=MODEL, max_queue=64, supported_routes=ROUTES)


async def serve(kind: str, score_s: float) -> None:
    """A draft or a target, until SIGTERM."""
    names = {"draft": "presift.v1.DraftService", "target": "presift.v1.TargetService"}
    server = GrpcServer(ServerOptions("127.0.0.1:0", drain_s=1.0), [names[kind]])
    if kind == "draft":
        draft_pb2_grpc.add_DraftServiceServicer_to_server(SlowDraft(score_s), server.grpc)
    else:
        servicer = TargetServicer(Admission(64, 1024))
        servicer.use(EchoEngine())
        target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    await server.set_serving(True)
    print(f"presift {kind} ready on 127.0.0.1:{port}: simulated", flush=True)
    await server.run_until_stopped()


@contextmanager
def running(drafts: int, score_s: float) -> Iterator[list[str]]:
    """The addresses of two orchestrators over so many drafts."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        cache = stack.enter_context(embedded_cache())
        bench, source = Path(__file__), str(Path(presift.__file__).parents[1])
        environment = {
            "PYTHONPATH": os.pathsep.join((*map(str, bench.parents[:2]), source, os.environ.get("PYTHONPATH", "")))
        }

        def launch(name: str, module: str, flags: list[str]) -> str:
            log = Path(folder) / f"{name}.log"
            service = ServiceProcess(name, module, flags, log, environment)
            stack.callback(service.stop, 5.0)
            return service.wait_ready(60.0)

        draft = ",".join(launch(f"draft{n}", bench.stem, ["--serve", "draft", str(score_s)]) for n in range(drafts))
        target = launch("target", bench.stem, ["--serve", "target", "0"])
        environment["PRESIFT_ORCHESTRATOR_CACHE_URL"] = cache.url
        flags = ["--listen=127.0.0.1:0", f"--draft-address={draft}", f"--target-address={target}", "--no-calibrate"]
        flags += ["--compress-above-tokens=100", "--guard-share=0"]
        yield [launch(f"orchestrator{n}", "presift.orchestrator", flags) for n in range(ORCHESTRATORS)]


async def throughput(addresses: list[str], duration_s: float, seeds: Iterator[int]) -> float:
    """Scored prompts per second, with CALLERS callers."""
    scored, until = 0, time.perf_counter() + duration_s

    async def ask(address: str) -> None:
        nonlocal scored
        async with AsyncClient(address) as client:
            while time.perf_counter() < until:
                ids = np.random.default_rng(next(seeds)).integers(1, 512, PROMPT_TOKENS).tolist()
                answer = await client.generate(
                    token_ids=ids, route="spec_pc", max_prompt_tokens=CAPACITY, max_new_tokens=1, deadline_s=60
                )
                assert (answer.decision.route, answer.decision.cache) == ("spec_pc", "miss"), answer.decision
                scored += 1

    began = time.perf_counter()
    await asyncio.gather(*(ask(addresses[n % len(addresses)]) for n in range(CALLERS)))
    return scored / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--score-ms", type=float, default=100.0, help="what a draft takes for a prompt")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each is measured")
    chosen, found = parser.parse_args(), {}
    for drafts in (1, 2):
        with running(drafts, chosen.score_ms / 1000) as addresses:
            seeds = count(1)
            asyncio.run(throughput(addresses, 2.0, seeds))
            found[drafts] = round(asyncio.run(throughput(addresses, chosen.seconds, seeds)), 2)
    ratio = round(found[2] / found[1], 2)
    table = Table("drafts", "prompts scored per second", title=f"scoring, {chosen.score_ms:g} ms a prompt (simulated)")
    for drafts, rate in found.items():
        table.add_row(str(drafts), str(rate))
    Console().print(table)
    row = {"bench": "scaling", "cpu": platform.processor(), "load": os.getloadavg()[0], "score_ms": chosen.score_ms}
    print(json.dumps(row | {"rates": found, "ratio": ratio}))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(serve(sys.argv[2], float(sys.argv[3])))
    else:
        main()
