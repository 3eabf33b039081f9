"""gRPC's own retries: on UNAVAILABLE while nothing was received, and never after that."""

import grpc
import pytest

import presift_client as pc
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc, plan_pb2, target_pb2

from ..fakes.clients import CLIENTS

DECISION = orchestrator_pb2.GenerateResponse(
    decision=orchestrator_pb2.Decision(
        route=plan_pb2.ROUTE_FULL,
        reason=orchestrator_pb2.DECISION_REASON_REQUESTED,
        cache=orchestrator_pb2.CACHE_OUTCOME_NOT_USED,
    )
)
DELTA = orchestrator_pb2.GenerateResponse(delta=orchestrator_pb2.TextDelta(text="abc", token_ids=[1, 2, 3]))
USAGE = orchestrator_pb2.GenerateResponse(
    usage=orchestrator_pb2.Usage(finish_reason=target_pb2.FINISH_REASON_STOP, completion_tokens=1)
)


class Flaky(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Fails its first `failures` calls with `code`, after `messages` messages."""

    def __init__(self, failures, code=grpc.StatusCode.UNAVAILABLE, messages=0):
        self.failures, self.code, self.messages, self.calls = failures, code, messages, 0
        self.extra = []

    async def Generate(self, request, context):
        self.calls += 1
        if self.calls <= self.failures:
            for event in (DECISION, DELTA, DELTA)[: self.messages]:
                yield event
            await context.abort(self.code, "by the fake")
        for event in [DECISION, *self.extra, USAGE]:
            yield event

    async def GetInfo(self, request, context):
        self.calls += 1
        if self.calls <= self.failures:
            await context.abort(self.code, "by the fake")
        return orchestrator_pb2.GetInfoResponse(target=plan_pb2.ModelInfo(id="target"))


@pytest.fixture(params=CLIENTS.values(), ids=CLIENTS)
async def meet(request):
    """Starts a servicer and returns a client of it."""
    clients, servers = [], []

    async def meet(servicer):
        servers.append(GrpcServer(ServerOptions("127.0.0.1:0"), []))
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, servers[-1].grpc)
        clients.append(request.param(f"127.0.0.1:{await servers[-1].start()}"))
        return clients[-1]

    yield meet
    for client in clients:
        await client.aclose()
    for server in servers:
        await server.grpc.stop(0)


@pytest.mark.parametrize("characters", [1, 3_000_000])
async def test_unavailable_before_any_message_is_retried(meet, characters):
    """Long prompts too: they exceed gRPC's default retry buffer."""
    servicer = Flaky(failures=1)
    client = await meet(servicer)
    assert (await client.generate("x" * characters)).usage.completion_tokens == 1
    assert servicer.calls == 2


async def test_what_a_stopping_service_cancels_is_retried(meet):
    servicer = Flaky(failures=1, code=grpc.StatusCode.CANCELLED)
    client = await meet(servicer)
    assert (await client.generate("x")).usage.completion_tokens == 1
    assert servicer.calls == 2


async def test_info_is_retried(meet):
    servicer = Flaky(failures=1)
    client = await meet(servicer)
    assert (await client.info()).target.id == "target"
    assert servicer.calls == 2


async def test_no_retry_after_a_message(meet):
    servicer = Flaky(failures=1, messages=1)
    client = await meet(servicer)
    with pytest.raises(pc.Unavailable):
        await client.generate("x")
    assert servicer.calls == 1


async def test_received_tokens_count_if_the_service_reports_none(meet):
    client = await meet(Flaky(failures=1, messages=3))
    with pytest.raises(pc.Unavailable) as lost:
        await client.generate("x")
    assert lost.value.delivered_tokens == 6


@pytest.mark.parametrize("code", ["INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"])
async def test_no_other_status_is_retried(meet, code):
    servicer = Flaky(failures=1, code=grpc.StatusCode[code])
    client = await meet(servicer)
    with pytest.raises(pc.PresiftError) as refusal:
        await client.generate("x")
    assert refusal.value.code.name == code and servicer.calls == 1


async def test_the_number_of_attempts_is_limited(meet):
    servicer = Flaky(failures=99)
    client = await meet(servicer)
    with pytest.raises(pc.Unavailable):
        await client.generate("x")
    assert servicer.calls == 4


async def test_enum_values_of_a_newer_service(meet):
    """Enums are open: a newer value must not break an older client."""
    servicer = Flaky(failures=0)
    newer = orchestrator_pb2.Decision(route=99, reason=99, cache=99)
    servicer.extra = [orchestrator_pb2.GenerateResponse(decision=newer)]
    client = await meet(servicer)
    decision = (await client.generate("x")).decision
    assert (decision.route, decision.reason, decision.cache) == ("99", "99", "99")


async def test_events_of_a_newer_service(meet):
    servicer = Flaky(failures=0)
    servicer.extra = [orchestrator_pb2.GenerateResponse()]
    client = await meet(servicer)
    assert (await client.generate("x")).token_ids == ()
