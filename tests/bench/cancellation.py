"""How soon a caller's going is felt: by the draft between its chunks, by SGLang as an abort.

A real stack (SmolLM2-135M, its own first six layers as the draft); calls are cancelled at the orchestrator while the
draft reads, while the target reads, while the answer streams. Draft: how long the next caller waits there.
Target: until SGLang was told to abort (the end of the target's span, by the machine's clock), and until it has let go
(the target counts no request, asked every 2 ms): that takes the batch that is under way. Prints a table and one JSON
line.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from auto_trace import folders
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from rich.console import Console
from rich.table import Table

from presift.cli.stack.stack import LocalStack, StackOptions
from presift.v1 import (
    draft_pb2,
    draft_pb2_grpc,
    orchestrator_pb2,
    orchestrator_pb2_grpc,
    plan_pb2,
    target_pb2,
    target_pb2_grpc,
)

ROUNDS, PROMPT_TOKENS, CHUNK_TOKENS = 20, 4000, 128
# Seconds after which the call is cancelled: the stage is surely under way, and not over.
WHEN_S = {"draft reads": 0.6, "target reads": 0.6, "answer streams": 0.0}


class Aborts(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes the target's spans: when each answer ended there, in seconds since the epoch."""

    def __init__(self) -> None:
        self._ends_s: list[float] = []

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> Any:
        spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        self._ends_s += [span.end_time_unix_nano / 1e9 for span in spans if span.name in {"prefill", "decode"}]
        return trace_service_pb2.ExportTraceServiceResponse()

    def after(self, moment_s: float) -> float:
        """Milliseconds from then to the next end."""
        return (min(end_s for end_s in self._ends_s if end_s >= moment_s) - moment_s) * 1000


class Stack:
    """The services behind stubs."""

    def __init__(self, stack: LocalStack) -> None:
        address = {service.name: service.address for service in stack.services}
        self.orchestrator = orchestrator_pb2_grpc.OrchestratorServiceStub(grpc.insecure_channel(stack.address))
        self.draft = draft_pb2_grpc.DraftServiceStub(grpc.insecure_channel(address["draft"]))
        self.target = target_pb2_grpc.TargetServiceStub(grpc.insecure_channel(address["target"]))

    def next_at_draft_ms(self) -> float:
        """How long a new caller waits for the draft."""
        policy = plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=40, lookahead_tokens=1, start_layer=3))
        reply = self.draft.Score(draft_pb2.ScoreRequest(token_ids=range(100, 164), policy=policy))
        return float(reply.timings.queue_ms)

    def idle_target_ms(self) -> float:
        """How long the target counts a request still."""
        began = time.perf_counter()
        while self.target.GetInfo(target_pb2.TargetServiceGetInfoRequest()).running_requests:
            time.sleep(0.002)
        return (time.perf_counter() - began) * 1000


def request(seed: int, route: plan_pb2.Route, tokens: int) -> orchestrator_pb2.GenerateRequest:
    """A prompt that nobody has asked before."""
    ids = np.random.default_rng(seed).integers(1000, 40_000, tokens)
    sampling = target_pb2.Sampling(max_new_tokens=400, temperature=0.0, ignore_eos=True)
    prompt = orchestrator_pb2.Prompt(token_ids=orchestrator_pb2.TokenIds(ids=ids.tolist()))
    return orchestrator_pb2.GenerateRequest(prompt=prompt, route=route, sampling=sampling)


def cancelled_while(stage: str, stack: Stack, seed: int) -> float:
    """A call that is cancelled in this stage; returns as soon as it is, with the moment before it."""
    route = plan_pb2.ROUTE_SPEC_PC if stage == "draft reads" else plan_pb2.ROUTE_FULL
    tokens = 200 if stage == "answer streams" else PROMPT_TOKENS
    call = stack.orchestrator.Generate(request(seed, route, tokens))
    if stage == "answer streams":
        for _, event in zip(range(8), call, strict=False):
            assert not event.HasField("usage")
        return cancel(call)
    moments: list[float] = []
    timer = threading.Timer(WHEN_S[stage], lambda: moments.append(cancel(call)))
    timer.start()
    try:
        for event in call:
            assert event.HasField("decision"), f"too late: {stage} is over"
    except grpc.RpcError as gone:
        assert gone.code() is grpc.StatusCode.CANCELLED, gone  # type: ignore[attr-defined]
    timer.join()
    return moments[0]


def cancel(call: Any) -> float:
    """Seconds since the epoch, just before."""
    moment_s = time.time()
    call.cancel()
    return moment_s


def measured(stack: Stack) -> dict[str, list[tuple[float, float]]]:
    """By stage: when a call was cancelled, and how long (ms) it was felt after that."""
    felt: dict[str, Callable[[], float]] = {
        "draft reads": stack.next_at_draft_ms,
        "target reads": stack.idle_target_ms,
        "answer streams": stack.idle_target_ms,
    }
    return {
        stage: [(cancelled_while(stage, stack, 1000 * number + each), wait_ms()) for each in range(ROUNDS)]
        for number, (stage, wait_ms) in enumerate(felt.items())
    }


def rows_of(rounds: dict[str, list[tuple[float, float]]], aborts: Aborts) -> list[dict[str, Any]]:
    rows = []
    for stage, times in rounds.items():
        told = [] if stage == "draft reads" else [aborts.after(moment_s) for moment_s, _ in times]
        rows.append({"cancelled while": stage, **spread("abort", told), **spread("free", [ms for _, ms in times])})
    return rows


def spread(of: str, times_ms: list[float]) -> dict[str, float | None]:
    if not times_ms:
        return {f"{of}_p50_ms": None, f"{of}_max_ms": None}
    return {f"{of}_p50_ms": round(statistics.median(times_ms), 1), f"{of}_max_ms": round(max(times_ms), 1)}


def main() -> None:
    aborts, server = Aborts(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(aborts, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with tempfile.TemporaryDirectory(prefix="presift-cancel-") as name:
        scratch = Path(name)
        draft, target = folders("small", scratch)
        flags = ["--compress-above-tokens", "500", "--no-calibrate", "--guard-share", "0"]
        spans = ["--otlp-endpoint", f"127.0.0.1:{port}"]
        options = StackOptions(
            draft,
            target,
            target,
            scratch / "logs",
            "127.0.0.1:0",
            draft_flags=["--chunk-tokens", str(CHUNK_TOKENS)],
            target_flags=["--prefill-chunk-tokens", str(CHUNK_TOKENS), *spans],
            orchestrator_flags=flags,
        )
        with LocalStack(options, print) as running:
            rounds = measured(Stack(running))
    server.stop(None)
    rows = rows_of(rounds, aborts)  # what was not exported yet came when the target ended
    table = Table(*rows[0], title=f"chunks of {CHUNK_TOKENS} tokens; free: of this caller")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)
    print(json.dumps({"bench": "cancellation", "load": os.getloadavg()[0], "rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    main()
