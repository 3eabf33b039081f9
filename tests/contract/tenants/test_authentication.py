"""Authentication over gRPC: who is admitted, as whom, and that nothing is reached without a valid credential."""

import asyncio
import logging
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from presift.core.errors import Unauthenticated
from presift.orchestrator.api.auth.api_keys import new_key
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.api.grpc import servicer
from presift.orchestrator.config.overrides import Override, OverrideLevel, OverrideRules, OverrideTable
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.quality.guard import QualityGuard
from presift.v1 import orchestrator_pb2

from ..fakes.api_keys import ACME, ACME_TOO, ADMIN, OTHER, bearer, key_authenticator
from ..fakes.stack import DEFAULTS, refusal_of, request, wire_prompt

LONG = list(range(100, 200))


class NoTokens:
    """Rejects every token, as the real verifier does."""

    def verify(self, token):
        raise Unauthenticated("invalid token")


@pytest.fixture
async def stack(open_stack):
    return await open_stack(
        auth_interceptors=(AuthInterceptor(key_authenticator(tokens=NoTokens())),), salt="deployment"
    )


BAD = {
    "nothing": (),
    "a tenant alone": (("presift-tenant", "acme"),),
    "an unknown key": bearer(new_key()),
    "a key without its scheme": (("authorization", ACME),),
    "two keys": (*bearer(ACME), *bearer(ACME)),
    "an invalid token": bearer("a.b.c"),
    "an empty one": (("authorization", "Bearer "),),
}


@pytest.mark.parametrize("metadata", BAD.values(), ids=BAD)
async def test_without_a_valid_credential_nothing_is_reached(stack, metadata, telemetry):
    before = telemetry.total("presift.callers.refused", why="credential")
    calls = [
        stack.stub.Generate(request(LONG), metadata=metadata).read(),
        stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG)), metadata=metadata),
        stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest(), metadata=metadata),
    ]
    for call in calls:
        refused = await refusal_of(call)
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        assert ACME[4:] not in refused.message
    assert stack.target.calls == stack.draft.calls == stack.target.prefills == []
    assert telemetry.total("presift.callers.refused", why="credential") == before + 3


async def test_an_unauthenticated_message_is_not_parsed(stack):
    """Parsing these bytes would fail with another status."""
    method = "/presift.v1.OrchestratorService/Explain"
    for metadata, code in (((), "UNAUTHENTICATED"), (bearer(ACME), "INVALID_ARGUMENT")):
        call = stack.channel.unary_unary(method)(b"\xff" * 1000, metadata=metadata)
        assert (await refusal_of(call)).code == code


async def test_another_tenants_name_is_denied(stack):
    for named in ("other", "nobody"):
        refused = await refusal_of(stack.stub.Generate(request(LONG), metadata=_naming(ACME, named)).read())
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert stack.target.calls == []
    own = stack.stub.Generate(request(LONG), metadata=_naming(ACME, "acme"))
    assert (await own.read()).WhichOneof("event") == "decision"


async def test_health_is_open_and_reflection_is_not(stack):
    await stack.server.set_serving(True)
    health = health_pb2_grpc.HealthStub(stack.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    reflect = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    # Nothing is sent: gRPC's client reports INTERNAL if the server refuses the call while it still writes.
    refused = await refusal_of(reflect.ServerReflectionInfo().read())
    assert refused.code == "UNAUTHENTICATED"
    reply = await reflect.ServerReflectionInfo(iter([asked]), metadata=bearer(ACME)).read()
    assert "presift.v1.OrchestratorService" in {each.name for each in reply.list_services_response.service}


async def test_the_keys_tenant_has_its_defaults(open_stack):
    def build(changes):
        return replace(DEFAULTS, compress_above_tokens=changes.get("compress_above_tokens", 32))

    rules = OverrideRules(OverrideLevel(), {}, {"acme": OverrideLevel(Override({"compress_above_tokens": 300}))})
    stack = await open_stack(
        auth_interceptors=(AuthInterceptor(key_authenticator()),), terms=PolicySource(OverrideTable(build, rules))
    )
    routes = {}
    for name, key in (("acme", ACME), ("acme too", ACME_TOO), ("other", OTHER)):
        event = await stack.stub.Generate(request(LONG), metadata=bearer(key)).read()
        routes[name] = event.decision.route
    assert routes["acme"] == routes["acme too"] != routes["other"]


async def test_only_an_administrator_sees_replicas_speeds_and_quality(stack, monkeypatch):
    """Addresses, breakers and requests in flight are of all tenants, and so is what has been learned."""
    monkeypatch.setattr(Pipeline, "stage_costs", lambda self: ["target"])
    monkeypatch.setattr(servicer, "speed_to_wire", lambda stage: orchestrator_pb2.StageSpeed(stage=stage))
    monkeypatch.setattr(QualityGuard, "qualities", lambda self: [32])
    monkeypatch.setattr(servicer, "quality_to_wire", lambda samples: orchestrator_pb2.RouteQuality(samples=samples))
    asked = orchestrator_pb2.GetInfoRequest()
    own = await stack.stub.GetInfo(asked, metadata=bearer(ACME))
    whole = await stack.stub.GetInfo(asked, metadata=bearer(ADMIN))
    assert own.restricted and not whole.restricted
    assert {each.role for each in whole.replicas} == {"draft", "target"}
    assert [each.stage for each in whole.speeds] == ["target"] and whole.route_quality[0].samples == 32
    for field in ("replicas", "speeds", "route_quality"):
        assert not getattr(own, field)
        whole.ClearField(field)
    # A caller still learns what it needs: models, routes and limits.
    own.ClearField("restricted")
    assert own == whole and own.target.id and own.draft.id and own.supported_routes and own.compress_above_tokens


async def test_without_authentication_everyone_sees_the_whole(open_stack):
    plain = await open_stack()
    info = await plain.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
    assert not info.restricted and info.replicas


async def test_concurrent_callers_do_not_mix(stack):
    """Each call has its own caller, however many run."""
    keys = [ACME, OTHER] * 20

    async def salt_of(number, key):
        prompt = [number, *LONG[:20]]
        async for _ in stack.stub.Generate(request(prompt), metadata=bearer(key)):
            pass
        return next(call.cache_salt for call in stack.target.calls if list(call.token_ids) == prompt)

    salts = await asyncio.gather(*(salt_of(number, key) for number, key in enumerate(keys)))
    assert len(set(salts[::2])) == len(set(salts[1::2])) == 1 and salts[0] != salts[1]


async def test_no_key_is_in_logs_traces_or_errors(stack, caplog, telemetry):
    caplog.set_level(logging.DEBUG)
    unknown = new_key()
    said = []
    for key in (ACME, unknown):
        try:
            async for _ in stack.stub.Generate(request(LONG), metadata=bearer(key)):
                pass
        except grpc.aio.AioRpcError as error:
            said.append(f"{error.details()} {error.trailing_metadata()}")
    said += [caplog.text, *(span.to_json() for span in telemetry.spans)]
    assert len(said) > 3
    for text in said:
        assert all(secret not in text for secret in (ACME[4:], unknown[4:], "deployment"))


def _naming(key, tenant):
    return bearer(key, ("presift-tenant", tenant))
