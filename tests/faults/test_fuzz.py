"""Mutated requests against real processes: only typed errors, services up, memory flat.

A thousand for each service in CI; 20,000 with `-m faults`. `PRESIFT_FUZZ_SEED` takes another seed; a failure names the
case, and `case(service, seed, number)` makes it again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from presift.cli.stack.process import ServiceProcess
from presift.core.errors import InternalError, PresiftError
from presift.core.fingerprint import fingerprint
from presift.rpc.status import TABLE, code_and_reason, error_of
from presift.v1 import orchestrator_pb2

from . import corpus
from .mutations import mutated

START_S = 240.0
CALLERS = 8
SEED = os.environ.get("PRESIFT_FUZZ_SEED", "presift")
SHARES = [1_000, pytest.param(20_000, marks=pytest.mark.faults)]
CORPUS = {"draft": corpus.DRAFT, "target": corpus.TARGET, "orchestrator": corpus.ORCHESTRATOR}
# What a request may be refused with; all else would be the service's own trouble.
REFUSALS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
TYPED = {(code, reason) for kind, code, reason in TABLE if kind not in (InternalError, PresiftError)}
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}<assistant>"
)
FLAGS = {
    "compress-above-tokens": 60,
    "capacity": 48,
    "window": 8,
    "kernel": 3,
    "neighbors": 4,
    "lookahead-tokens": 2,
    "kv-capacity": 32,
    "kv-window": 8,
    "kv-lookahead-tokens": 4,
    "cascade-capacity": 96,
    "guard-share": 0,
    # What is remembered is bounded, and full soon.
    "token-memory-mib": 1,
    "prefix-memory-mib": 1,
    "turn-memory-mib": 1,
    "cache-ttl-s": 3,
}


@dataclass
class Fuzzed:
    """A service under fuzz."""

    process: ServiceProcess
    address: str
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def rss_bytes(self) -> int:
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    def complaints(self) -> list[str]:
        """Lines of the log that tell of a defect."""
        lines = self.process.log.read_text(errors="replace").splitlines()
        # OpenTelemetry's own noise where a caller goes away between two messages of a stream.
        return [line for line in lines if " ERROR " in line and "Failed to detach context" not in line]


def environment() -> dict[str, str]:
    folders = [*map(str, Path(__file__).parents[:2]), *filter(None, sys.path)]
    return {"PYTHONPATH": os.pathsep.join(folders), "OMP_WAIT_POLICY": "passive"}


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer of bytes and a chat template."""
    path = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(tiny_model("tinyq"), path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def services(folder: Path) -> Iterator[dict[str, Fuzzed]]:
    """Draft, target and orchestrator, each its own process; the orchestrator over the other two."""
    running: dict[str, Fuzzed] = {}

    def start(name: str, module: str, flags: list[str]) -> Fuzzed:
        process = ServiceProcess(name, module, flags, folder.parent / f"{name}.log", environment())
        running[name] = Fuzzed(process, "")
        running[name].address = process.wait_ready(START_S)
        return running[name]

    listen = "--listen=127.0.0.1:0"
    try:
        target = start("target", "fuzz_target", [fingerprint((folder / "tokenizer.json").read_bytes())])
        draft = start("draft", "presift.draft", [f"--model={folder}", "--dtype=float32", "--threads=1", listen])
        addresses = [f"--draft-address={draft.address}", f"--target-address={target.address}"]
        flags = [*addresses, f"--tokenizer={folder}", "--no-calibrate", listen]
        start("orchestrator", "presift.orchestrator", [*flags, *(f"--{name}={value}" for name, value in FLAGS.items())])
        yield running
    finally:
        for each in reversed(running.values()):
            each.process.stop(20.0)


def case(service: str, seed: str, number: int) -> tuple[str, bytes]:
    """One mutated request: the method and the bytes."""
    rng = random.Random(f"{seed} {service} {number}")
    method, message = rng.choice(CORPUS[service])
    return method, mutated(message, rng)


async def send(channel: grpc.aio.Channel, method: str, raw: bytes) -> list[bytes]:
    call = channel.unary_stream(f"/presift.v1.{method}", request_serializer=bytes, response_deserializer=bytes)
    return [event async for event in call(raw, timeout=60)]


async def judge(fuzzed: Fuzzed, channel: grpc.aio.Channel, method: str, raw: bytes) -> str:
    """Empty where the outcome is one that may be; else what is wrong with it."""
    try:
        events = await send(channel, method, raw)
    except grpc.aio.AioRpcError as failure:
        error = error_of(failure)
        told = "untyped" if error is None else code_and_reason(error)[1]
        fuzzed.outcomes[f"{failure.code().name} {told}"] += 1
        is_typed = error is not None and code_and_reason(error) in TYPED
        return "" if is_typed and failure.code().name in REFUSALS else f"{failure.code()} {failure.details()}"
    fuzzed.outcomes["OK"] += 1
    if method == "OrchestratorService/Generate":
        decision = orchestrator_pb2.GenerateResponse.FromString(events[0]).decision
        fuzzed.reasons[orchestrator_pb2.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_")] += 1
    return ""


async def fuzz(service: str, fuzzed: Fuzzed, numbers: range) -> None:
    """Send these cases, several at a time. Raises AssertionError that names the first ones that went wrong."""
    waiting, wrong = iter(numbers), list[str]()

    async def call(channel: grpc.aio.Channel) -> None:
        for number in waiting:
            method, raw = case(service, SEED, number)
            if found := await judge(fuzzed, channel, method, raw):
                wrong.append(f"case({service!r}, {SEED!r}, {number}) {method}: {found}")

    async with grpc.aio.insecure_channel(fuzzed.address) as channel:
        await asyncio.gather(*(call(channel) for _ in range(CALLERS)))
    assert not wrong, "\n".join([f"{len(wrong)} of {len(numbers)}", *wrong[:20]])


def is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("service", CORPUS)
def test_only_typed_errors_and_services_up(services: dict[str, Fuzzed], service: str, share: int) -> None:
    fuzzed, before = services[service], {name: each.process.pid for name, each in services.items()}
    warm_up = share // 4
    asyncio.run(fuzz(service, fuzzed, range(warm_up)))
    warm = {name: each.rss_bytes for name, each in services.items()}
    asyncio.run(fuzz(service, fuzzed, range(warm_up, share)))
    grown = {name: each.rss_bytes / warm[name] - 1 for name, each in services.items()}
    print(f"\n{service}: {dict(fuzzed.outcomes)} {dict(fuzzed.reasons)}; RSS {warm}, grown by {grown}")
    for name, each in services.items():
        assert each.process.exit_code() is None and is_serving(each.address), name
        assert not each.complaints(), (name, each.complaints()[:5])
    assert before == {name: each.process.pid for name, each in services.items()}
    assert fuzzed.outcomes["OK"] > share // 20, "the mutations leave too little that is valid"
    # What the draft is asked by the orchestrator, and what it answers, is always sound.
    assert not {"DRAFT_UNAVAILABLE", "MASK_REJECTED", "DRAFT_CHANGED"} & fuzzed.reasons.keys(), fuzzed.reasons
    if share > 10_000:  # a short run is all warm-up
        assert max(grown.values()) < 0.05, grown


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")
def test_no_request_that_is_taken_kills_the_real_engine(folder: Path, tmp_path: Path) -> None:
    """The echo engine takes any number; SGLang's scheduler would die of some."""
    flags = [f"--model={folder}", "--dtype=float32", "--context-tokens=600", "--listen=127.0.0.1:0"]
    process = ServiceProcess("engine", "presift.target", flags, tmp_path / "log", environment())
    try:
        fuzzed = Fuzzed(process, process.wait_ready(START_S))
        asyncio.run(fuzz("target", fuzzed, range(1_000)))
        print(f"\nSGLang: {dict(fuzzed.outcomes)}")
        assert process.exit_code() is None and is_serving(fuzzed.address)
    finally:
        process.stop(60.0)


def test_the_same_seed_makes_the_same_case() -> None:
    assert case("target", "a", 7) == case("target", "a", 7) != case("target", "b", 7)


def test_an_untyped_error_would_be_seen() -> None:
    """The judge, given a service that fails in its own way."""

    async def broken(request: bytes, context: Any) -> bytes:
        raise RuntimeError("a defect")

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {"Score": grpc.unary_unary_rpc_method_handler(broken)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("presift.v1.DraftService", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        fuzzed = Fuzzed(None, f"127.0.0.1:{port}")  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="UNKNOWN"):
            await fuzz("draft", fuzzed, range(5))
        await server.stop(0)

    asyncio.run(run())


def test_every_method_is_in_the_corpus() -> None:
    methods = {method for cases in CORPUS.values() for method, _ in cases}
    described = {
        f"{service.name}/{method.name}"
        for message in (each for cases in CORPUS.values() for _, each in cases)
        for service in _file(message).services_by_name.values()
        for method in service.methods
    }
    assert methods == described


def _file(message: Message) -> Any:
    return message.DESCRIPTOR.file
