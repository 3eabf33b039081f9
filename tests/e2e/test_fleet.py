"""Two of each from one command: real processes with tiny random models, SGLang in both targets, none drops KV."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.cli.stack.stack import LocalStack, StackOptions
from presift.v1 import target_pb2, target_pb2_grpc
from presift_client import Client, Generation

pytestmark = pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")

CAPACITY = 32


def prompt(seed: int, tokens: int = 200) -> list[int]:
    return np.random.default_rng(seed).integers(1, 250, tokens).tolist()


@pytest.fixture(scope="module")
def stack(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    model = str(tiny_model("tinyq"))
    small = ["--context-tokens", "1024", "--kv-pool-tokens", "4096", "--dtype", "float32", "--no-kv-dropping"]
    options = StackOptions(
        draft=model,
        target=model,
        tokenizer=None,
        logs=tmp_path_factory.mktemp("logs"),
        listen="127.0.0.1:0",
        drafts=2,
        targets=2,
        orchestrators=2,
        target_flags=small,
        orchestrator_flags=["--compress-above-tokens", "64", "--capacity", str(CAPACITY), "--no-calibrate"],
    )
    with LocalStack(options, print) as running:
        yield running


@pytest.fixture
def clients(stack: LocalStack) -> Iterator[list[Client]]:
    opened = [Client(address) for address in stack.addresses]
    yield opened
    for client in opened:
        client.close()


def ask(client: Client, seed: int, route: str = "spec_pc") -> Generation:
    return client.generate(token_ids=prompt(seed), route=route, max_new_tokens=4, deadline_s=60)


def settle(condition: Callable[[], bool], patience_s: float = 60.0) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def healthy(client: Client, role: str) -> int:
    return sum(each.healthy and not each.unused for each in client.info().replicas if each.role == role)


def test_both_orchestrators_know_all_replicas(clients: list[Client]) -> None:
    for client in clients:
        settle(lambda client=client: healthy(client, "draft") == healthy(client, "target") == 2)  # type: ignore[misc]
        assert {each.breaker for each in client.info().replicas} == {"closed"}


def test_the_second_orchestrator_hits_what_the_first_stored(clients: list[Client]) -> None:
    first, second = (ask(client, 1) for client in clients)
    assert (first.decision.route, first.decision.cache) == ("spec_pc", "miss")
    assert (second.decision.cache, second.decision.draft_ms) == ("hit", 0.0)
    assert first.token_ids == second.token_ids
    # Both sent it to the same target, without a word between them.
    assert second.usage.cached_tokens > 0


def test_both_drafts_and_both_targets_work(clients: list[Client], stack: LocalStack) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: ask(clients[seed % 2], 100 + seed), range(32)))
    assert {answer.decision.route for answer in answers} == {"spec_pc"}
    again = [ask(clients[0], 100 + seed) for seed in range(32)]
    assert [answer.decision.cache for answer in again] == ["hit"] * 32
    names = {speed.replica for client in clients for speed in client.info().speeds if speed.stage == "target"}
    assert len(names) == 2


def test_without_kv_dropping_only_its_routes_are_missing(stack: LocalStack) -> None:
    for service in (each for each in stack.services if each.name.startswith("target")):
        with grpc.insecure_channel(service.address) as channel:
            stub = target_pb2_grpc.TargetServiceStub(channel)
            info = stub.GetInfo(target_pb2.TargetServiceGetInfoRequest())
            request = target_pb2.TargetServiceGenerateRequest(token_ids=prompt(2))
            request.sampling.max_new_tokens = 4
            *_, last = stub.Generate(request, timeout=60)
        assert {each.reason for each in info.unsupported_routes} == {"disabled by the setting kv_dropping"}
        assert len(info.supported_routes) == len(info.unsupported_routes) == 2
        assert last.usage.kv_tokens == 200


def test_other_replicas_replace_killed_ones(clients: list[Client], stack: LocalStack) -> None:
    """After the others: it kills."""
    lost = [next(each for each in stack.services if each.name == name) for name in ("target", "draft")]
    for service in lost:
        psutil.Process(service.pid).send_signal(signal.SIGKILL)
    answers = [ask(clients[seed % 2], 200 + seed) for seed in range(16)]
    assert {answer.decision.route for answer in answers} <= {"spec_pc", "full"}
    settle(lambda: all(healthy(client, role) == 1 for client in clients for role in ("draft", "target")))
    assert {ask(clients[seed % 2], 300 + seed).decision.route for seed in range(8)} == {"spec_pc"}
    settle(lambda: len(stack.ended()) == 2)
    assert stack.failed() is None


def test_a_crash_inside_the_engine_ends_the_service_with_an_error(stack: LocalStack) -> None:
    """Last: it ends the only target."""
    service = next(each for each in stack.services if each.name.startswith("target") and each.exit_code() is None)
    members = psutil.Process(service.pid).children(recursive=True)
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(1) as pool:
        # Not the name that the orchestrators watch: with several watchers of one name the last ones may be cut first.
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=120)
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        # Read at once: gRPC drops what is unread when a call ends with an error.
        following = pool.submit(next, health)
        sampling = target_pb2.Sampling(max_new_tokens=900, ignore_eos=True)
        request = target_pb2.TargetServiceGenerateRequest(token_ids=[1, 2, 3], sampling=sampling)
        call = target_pb2_grpc.TargetServiceStub(channel).Generate(request, timeout=120)
        next(call)
        scheduler = next(each for each in members if "sglang::scheduler" in " ".join(each.cmdline()))
        scheduler.kill()
        with pytest.raises(grpc.RpcError) as failure:
            list(call)
        assert following.result(60).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    settle(lambda: service.exit_code() is not None)
    assert service.exit_code() == 1
    assert psutil.wait_procs(members, timeout=5)[1] == []
    assert stack.failed() is not None
