"""A draft or target asks who calls: by token, by the name in a certificate. Health stays open."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from presift.core.errors import PermissionDenied, Unauthenticated
from presift.rpc.client.channel import open_channel
from presift.rpc.security.caller_interceptor import CallerInterceptor
from presift.rpc.security.peer import Peer
from presift.rpc.security.service_token import fixed_tokens, tokens_from_file
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.v1 import target_pb2, target_pb2_grpc

from ..fakes.authority import Authority, Counting
from ..fakes.services import raises

INFO, GENERATE = target_pb2.TargetServiceGetInfoRequest(), target_pb2.TargetServiceGenerateRequest()
TOKEN, OTHER = "a-token-of-some-length", "another-of-some-length"
HOST = "127.0.0.1"


class Guarded:
    def __init__(self, guard, tls=None):
        self.servicer, self.channels = Counting(), []
        options = ServerOptions(f"{HOST}:0", tls=tls)
        self.server = GrpcServer(options, ["presift.v1.TargetService"], auth_interceptors=[guard])
        target_pb2_grpc.add_TargetServiceServicer_to_server(self.servicer, self.server.grpc)

    async def start(self):
        self.port = await self.server.start()
        await self.server.set_serving(True)
        return self

    def channel(self, peer=None):
        self.channels.append(open_channel(f"{HOST}:{self.port}", peer=peer or Peer()))
        return self.channels[-1]

    def stub(self, peer=None):
        return target_pb2_grpc.TargetServiceStub(self.channel(peer))

    async def stop(self):
        for channel in self.channels:
            await channel.close()
        await self.server.grpc.stop(0)


@pytest.fixture
async def guard():
    running = []

    async def guard(*arguments, tls=None):
        running.append(await Guarded(CallerInterceptor(*arguments), tls).start())
        return running[-1]

    yield guard
    for guarded in running:
        await guarded.stop()


async def refusal_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    assert type(error_of(failure.value)).__name__.upper() == failure.value.code().name.replace("_", "")
    return failure.value.code().name


def showing(token):
    return Peer(tokens=fixed_tokens("service_token", token))


async def test_the_token_opens_every_method(guard):
    guarded = await guard(fixed_tokens("service_token", TOKEN))
    stub = guarded.stub(showing(TOKEN))
    await stub.GetInfo(INFO)
    call = stub.Generate(GENERATE)
    assert (await call.read()).delta.token_ids == [1]
    call.cancel()
    assert guarded.servicer.came_in == 2


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", f"Bearer {OTHER}"),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN}x"),),
        (("authorization", f"Bearer {TOKEN[:-1]}"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {OTHER}"), ("authorization", f"Bearer {TOKEN}")),
        (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {OTHER}")),
        (("authorization-bin", f"Bearer {TOKEN}".encode()),),
    ],
    ids=["none", "another", "no scheme", "basic", "longer", "shorter", "empty", "two", "two others", "binary"],
)
async def test_a_wrong_token_opens_none(guard, metadata):
    guarded = await guard(fixed_tokens("service_token", TOKEN))
    stub = guarded.stub()
    assert await refusal_of(stub.GetInfo(INFO, metadata=metadata)) == "UNAUTHENTICATED"
    assert await refusal_of(stub.Generate(GENERATE, metadata=metadata).read()) == "UNAUTHENTICATED"
    assert guarded.servicer.came_in == 0


async def test_the_message_of_an_unauthenticated_caller_is_not_parsed(guard):
    guarded = await guard(fixed_tokens("service_token", TOKEN))
    call = guarded.channel().unary_unary("/presift.v1.TargetService/GetInfo")
    assert await refusal_of(call(b"\xff" * 2**20)) == "UNAUTHENTICATED"


async def test_health_stays_open(guard):
    guarded = await guard(fixed_tokens("service_token", TOKEN))
    health = health_pb2_grpc.HealthStub(guarded.channel())
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest(service="presift.v1.TargetService"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_reflection_does_not(guard):
    guarded = await guard(fixed_tokens("service_token", TOKEN))
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel())
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    # Nothing is sent: gRPC's client reports INTERNAL if the server refuses the call while it still writes.
    assert await refusal_of(stub.ServerReflectionInfo().read()) == "UNAUTHENTICATED"
    known = (("authorization", f"Bearer {TOKEN}"),)
    reply = await stub.ServerReflectionInfo(iter([question]), metadata=known).read()
    assert "presift.v1.TargetService" in {service.name for service in reply.list_services_response.service}


async def test_tokens_are_changed_without_a_restart(guard, tmp_path):
    served, sent = tmp_path / "served", tmp_path / "sent"
    served.write_text(f"{TOKEN}\n")
    sent.write_text(f"{TOKEN}\n")
    guarded = await guard(tokens_from_file("service_token_file", served))
    ours = guarded.stub(Peer(tokens=tokens_from_file("service_token_file", sent)))
    await ours.GetInfo(INFO)
    served.write_text(f"{OTHER}\n{TOKEN}\n")
    await ours.GetInfo(INFO)
    sent.write_text(f"{OTHER}\n")
    await ours.GetInfo(INFO)
    served.write_text(f"{OTHER}\n")
    await ours.GetInfo(INFO)
    assert await refusal_of(guarded.stub(showing(TOKEN)).GetInfo(INFO)) == "UNAUTHENTICATED"
    served.write_text("")  # nothing that could be a token: what was in force stays
    await ours.GetInfo(INFO)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ours")


@pytest.mark.parametrize("names", [{"identities": ["orchestrator.stack"]}, {"common_name": "orchestrator.stack"}])
async def test_an_allowed_name_is_accepted(guard, authority, names):
    guarded = await guard(None, ["other.stack", "orchestrator.stack"], tls=authority.pair(HOST).files())
    caller = authority.pair(*names.get("identities", []), common_name=names.get("common_name"))
    await guarded.stub(Peer(caller.files())).GetInfo(INFO)
    assert guarded.servicer.came_in == 1


async def test_another_name_of_the_same_authority_does_not(guard, authority):
    guarded = await guard(None, ["orchestrator.stack"], tls=authority.pair(HOST).files())
    # The common name is only looked at where there is no other: it is the weaker word.
    caller = authority.pair("draft.stack", common_name="orchestrator.stack")
    channel = guarded.channel(Peer(caller.files()))
    stub = target_pb2_grpc.TargetServiceStub(channel)
    assert await refusal_of(stub.GetInfo(INFO)) == "PERMISSION_DENIED"
    assert await refusal_of(stub.Generate(GENERATE).read()) == "PERMISSION_DENIED"
    asked = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    assert await refusal_of(asked.read()) == "PERMISSION_DENIED"
    health = health_pb2_grpc.HealthStub(channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    assert guarded.servicer.came_in == 0


async def test_where_both_are_asked_both_are_needed(guard, authority):
    tls = authority.pair(HOST).files()
    guarded = await guard(fixed_tokens("service_token", TOKEN), ["orchestrator.stack"], tls=tls)
    ours, other = authority.pair("orchestrator.stack").files(), authority.pair("draft.stack").files()
    token = fixed_tokens("service_token", TOKEN)
    await guarded.stub(Peer(ours, tokens=token)).GetInfo(INFO)
    assert await refusal_of(guarded.stub(Peer(ours)).GetInfo(INFO)) == "UNAUTHENTICATED"
    assert await refusal_of(guarded.stub(Peer(other, tokens=token)).GetInfo(INFO)) == "PERMISSION_DENIED"
    assert guarded.servicer.came_in == 1


async def test_a_disconnect_cancels_the_call(guard, authority):
    """Through TLS, the check of names and the check of tokens."""
    token = fixed_tokens("service_token", TOKEN)
    guarded = await guard(token, ["orchestrator.stack"], tls=authority.pair(HOST).files())
    stub = guarded.stub(Peer(authority.pair("orchestrator.stack").files(), tokens=token))
    stream = stub.Generate(GENERATE)
    await stream.read()
    stream.cancel()

    async def ask():
        await stub.Prefill(target_pb2.PrefillRequest())

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(10):
        while guarded.servicer.left < 1:
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.05)
        asking.cancel()
        while guarded.servicer.left < 2:
            await asyncio.sleep(0.002)
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("error", [Unauthenticated("no service token"), PermissionDenied("no name that may call")])
async def test_a_peer_that_refuses_the_orchestrator_is_no_fault_of_its_caller(stack, error):
    """Its own key is in order: a draft's refusal costs the compression, a target's is unavailability."""
    stack.draft.faults.append(raises(error))
    answer = await stack.ask(list(range(100, 200)))
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_UNAVAILABLE")
    stack.target.faults.append(raises(error))
    refusal = await stack.refused([5, 6, 7])
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")
