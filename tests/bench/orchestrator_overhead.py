"""What the orchestrator costs on a cache hit: a real orchestrator, a real Valkey, a target that answers at once.

Overhead = the client's time to first token less the target's own. Three kinds of prompt: token ids; a chat seen before
(its tokens are remembered); a chat that is tokenised anew (the token memory is too small to hold it). Prints a table
and one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from presift.cache.embedded import embedded_cache
from presift.cli.settings import CliSettings
from presift.cli.stack.process import ServiceProcess
from presift.core.fingerprint import fingerprint
from presift.v1 import draft_pb2, draft_pb2_grpc, plan_pb2, target_pb2, target_pb2_grpc
from presift_client import Client, Delta, Usage

ROUNDS = 60
TOKENIZER = CliSettings().home / "models" / "qwen2.5-coder-0.5b-instruct"
FINGERPRINT = fingerprint((TOKENIZER / "tokenizer.json").read_bytes())


def model() -> plan_pb2.ModelInfo:
    return plan_pb2.ModelInfo(
        id="bench", revision="1", tokenizer_fingerprint=FINGERPRINT, context_tokens=1 << 20, layers=24, kv_heads=2,
        vocabulary_size=151_936,
    )  # fmt: skip


class KeepLast(draft_pb2_grpc.DraftServiceServicer):
    """Keeps the protected spans and the last tokens that fit."""

    async def Score(self, request: Any, context: Any) -> draft_pb2.ScoreResponse:
        tokens, capacity = len(request.token_ids), request.policy.spec_pc.capacity
        kept = np.zeros(tokens, dtype=bool)
        for span in request.protected_spans:
            kept[span.start : span.end] = True
        free = capacity - int(kept.sum())
        kept[[index for index in range(tokens - 1, -1, -1) if not kept[index]][:free]] = True
        mask = plan_pb2.TokenMask(prompt_tokens=tokens, kept=np.packbits(kept, bitorder="little").tobytes())
        return draft_pb2.ScoreResponse(token_mask=mask, coverage=0.9, model=model())

    async def GetInfo(self, request: Any, context: Any) -> draft_pb2.DraftServiceGetInfoResponse:
        return draft_pb2.DraftServiceGetInfoResponse(model=model(), supported_routes=[plan_pb2.ROUTE_SPEC_PC])


class AnswerAtOnce(target_pb2_grpc.TargetServiceServicer):
    """One token, no work."""

    async def Generate(self, request: Any, context: Any) -> Any:
        arrived = time.perf_counter()
        delta = target_pb2.TokenDelta(token_ids=[1])
        first_ms = (time.perf_counter() - arrived) * 1000
        yield target_pb2.TargetServiceGenerateResponse(delta=delta)
        usage = target_pb2.TargetUsage(prompt_tokens=len(request.token_ids), completion_tokens=1, ttft_ms=first_ms)
        yield target_pb2.TargetServiceGenerateResponse(usage=usage)

    async def GetInfo(self, request: Any, context: Any) -> target_pb2.TargetServiceGetInfoResponse:
        routes = [plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC]
        return target_pb2.TargetServiceGetInfoResponse(model=model(), supported_routes=routes)


async def serve() -> None:
    """Both fakes on one port, until killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 26)])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(KeepLast(), server)
    target_pb2_grpc.add_TargetServiceServicer_to_server(AnswerAtOnce(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def prompts(tokens: int) -> dict[str, dict[str, Any]]:
    words = " ".join(f"word{number % 997}" for number in range(tokens * 10 // 39))
    content = [{"text": words}, {"text": "What is it about?", "protected": True}]
    return {
        "token ids": {"token_ids": [1000 + i % 5000 for i in range(tokens)]},
        "chat": {"messages": [{"role": "user", "content": content}]},
    }


def measure(client: Client, prompt: dict[str, Any], tokens: int) -> tuple[float, int]:
    """Milliseconds to the first token beyond the target's own, and the prompt's length."""
    started, first_ms, usage = time.perf_counter(), 0.0, None
    for event in client.stream(
        **prompt, route="spec_pc", max_prompt_tokens=tokens // 8, compress_above_tokens=0, max_new_tokens=1
    ):
        if isinstance(event, Delta) and not first_ms:
            first_ms = (time.perf_counter() - started) * 1000
        elif isinstance(event, Usage):
            usage = event
    assert usage is not None
    return first_ms - usage.target_ttft_ms, usage.prompt_tokens


def rows(address: str, kinds: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    with Client(address) as client:
        for tokens in (4096, 65_536):
            for kind, title in kinds.items():
                prompt = prompts(tokens)[kind]
                measure(client, prompt, tokens)
                times, counts = zip(*(measure(client, prompt, tokens) for _ in range(ROUNDS)), strict=True)
                p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[18]
                found.append({"prompt": title, "tokens": counts[0], "p50_ms": round(p50, 2), "p95_ms": round(p95, 2)})
    return found


def run() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    fakes = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE)
    try:
        assert fakes.stdout is not None
        port = fakes.stdout.readline().decode().strip()
        with tempfile.TemporaryDirectory() as folder, embedded_cache() as cache:
            for memory, kinds in (
                (32, {"token ids": "token ids", "chat": "chat, seen before"}),
                (0, {"chat": "chat, tokenised anew"}),
            ):
                flags = [
                    "--listen",
                    "127.0.0.1:0",
                    "--draft-address",
                    f"127.0.0.1:{port}",
                    "--token-memory-mib",
                    str(memory),
                ]
                flags += ["--target-address", f"127.0.0.1:{port}", "--tokenizer", str(TOKENIZER)]
                environment = {"PRESIFT_ORCHESTRATOR_CACHE_URL": cache.url}
                service = ServiceProcess(
                    "orchestrator", "presift.orchestrator", flags, Path(folder) / "log", environment
                )
                try:
                    found += rows(service.wait_ready(60), kinds)
                finally:
                    service.stop(10)
    finally:
        fakes.kill()
        fakes.wait()
    return found


def main() -> None:
    found = run()
    table = Table("prompt", "tokens", "p50 ms", "p95 ms", title="orchestrator overhead on a cache hit")
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    print(
        json.dumps(
            {"bench": "orchestrator_overhead", "cpu": platform.processor(), "load": os.getloadavg()[0], "rows": found}
        )
    )


if __name__ == "__main__":
    asyncio.run(serve()) if "--serve" in sys.argv else main()
