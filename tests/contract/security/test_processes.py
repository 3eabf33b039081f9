"""Services as processes: TLS on every hop, refusals at the start, and nothing secret in what they write."""

import asyncio
import os
import signal
import sys

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from redis import Redis

from presift.cache.embedded import embedded_cache
from presift.core.errors import InvalidRequest
from presift.rpc.security.caller_interceptor import CallerInterceptor
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.service_token import bearer, fixed_tokens
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.rpc.status import error_of
from presift.target.__main__ import serve
from presift.target.settings import TargetSettings
from presift.v1 import draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc
from presift_client import AsyncClient, Client, PermissionDenied, TlsOptions, Unavailable

from ...echo_engine import EchoEngine
from ..fakes.authority import NAMES, Authority
from ..fakes.services import FakeDraft, FakeTarget, model

TOKEN, OTHER = "xylophone-xylophone", "glockenspiel-glockenspiel"
HOST, NAME = "127.0.0.1", "orchestrator.stack"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ours")


@pytest.fixture
async def start():
    """(service, flags, variables) -> the process; it is killed at the end."""
    processes = []

    async def start(service, *flags, listen=f"{HOST}:0", **variables):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
        command = [sys.executable, "-m", f"presift.{service}", "--listen", listen, *flags]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(process):
    """Its address."""
    line = (await process.stdout.readline()).decode()
    assert " ready on " in line, (await process.stderr.read()).decode()
    return line.partition(" ready on ")[2].partition(": ")[0]


async def ended(process):
    """(exit code, all that it wrote)"""
    out, log = await process.communicate()
    return process.returncode, (out + log).decode()


class Services:
    """A fake draft and a fake target that only let the orchestrator in."""

    def __init__(self, authority):
        self.draft, self.target = FakeDraft(model("draft")), FakeTarget(model("target"), (1,))
        self.servers = [self._server(authority) for _ in range(2)]
        draft_pb2_grpc.add_DraftServiceServicer_to_server(self.draft, self.servers[0].grpc)
        target_pb2_grpc.add_TargetServiceServicer_to_server(self.target, self.servers[1].grpc)

    def _server(self, authority):
        guard = CallerInterceptor(fixed_tokens("service_token", TOKEN), [NAME])
        return GrpcServer(
            ServerOptions(f"{HOST}:0", tls=authority.pair("inner.stack").files()), [], auth_interceptors=[guard]
        )

    async def start(self):
        self.ports = [await server.start() for server in self.servers]
        return self

    def flags(self):
        addresses = [
            f"--{name}-address={HOST}:{port}" for name, port in zip(("draft", "target"), self.ports, strict=True)
        ]
        return [*addresses, "--no-calibrate", "--compress-above-tokens=32", "--peer-name-override=inner.stack"]

    async def stop(self):
        self.draft.gate.set()
        self.target.gate.set()
        for server in self.servers:
            await server.grpc.stop(0)


@pytest.fixture
async def services(authority):
    services = await Services(authority).start()
    yield services
    await services.stop()


async def test_tls_on_every_hop(start, authority, services, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    ours, caller = authority.pair(HOST, NAME), authority.pair("application")
    process = await start(
        "orchestrator",
        *(*services.flags(), *ours.server_flags(), *authority.pair(NAME).peer_flags(), "--no-explain"),
        *(f"--service-token-file={token_file}", "--log-level=DEBUG"),
        PRESIFT_ORCHESTRATOR_TENANT_SALT=OTHER,
    )
    address = await ready(process)
    tls = TlsOptions(caller.ca, caller.cert, caller.key)
    async with AsyncClient(address, tls=tls, api_key=OTHER) as client:
        answer = await client.generate(token_ids=list(range(40)), max_new_tokens=3)
        assert answer.usage.completion_tokens == 3 and len(services.target.calls) == 1
        with pytest.raises(PermissionDenied, match="--no-explain"):
            await client.explain(token_ids=list(range(40)))
        with Client(address, tls=tls) as blocking:
            assert (await asyncio.to_thread(blocking.info)).target.id == "target"
    for stranger in (None, TlsOptions(ca=caller.ca), TlsOptions(cert=caller.cert, key=caller.key)):
        async with AsyncClient(address, tls=stranger) as client:
            with pytest.raises(Unavailable):
                await client.info()
    assert len(services.target.calls) == 1
    process.terminate()
    code, written = await ended(process)
    assert code == 0 and not any(secret in written for secret in (TOKEN, OTHER, "PRIVATE KEY"))


async def test_an_orchestrator_that_is_not_theirs_waits_and_says_why(start, authority, services):
    process = await start(
        *("orchestrator", *services.flags(), *authority.pair("other.stack").peer_flags()),
        PRESIFT_ORCHESTRATOR_SERVICE_TOKEN=OTHER,
    )
    log = b""
    async with asyncio.timeout(60):
        while b"refuses this orchestrator" not in log:
            log += await process.stderr.readline()
    assert (
        b"the target refuses this orchestrator: missing or unknown service token" in log and OTHER.encode() not in log
    )


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Of OpenTelemetry: the names of the spans that were sent."""

    def __init__(self):
        self.names = set()

    async def Export(self, request, context):
        found = (span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans)
        self.names |= {span.name for span in found}
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_draft_with_a_token_listens_beyond_loopback_and_sends_telemetry_by_tls(
    start, authority, tiny_model, tmp_path
):
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    pair, collector = authority.pair(HOST), Collector()
    server = GrpcServer(ServerOptions(f"{HOST}:0", tls=TlsFiles(pair.cert, pair.key, None, NAMES)), [])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server.grpc)
    process = await start(
        *("draft", "--model", str(tiny_model("tinyq")), "--threads=1", "--no-reflection"),
        *(f"--service-token-file={token_file}", f"--otlp-endpoint={HOST}:{await server.start()}"),
        f"--otlp-ca={pair.ca}",
        listen="0.0.0.0:0",
    )
    host, _, port = (await ready(process)).partition(":")
    assert host == "0.0.0.0"
    async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        for metadata in ((), (bearer(OTHER),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest(), metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert TOKEN not in error_of(refused.value).message
        info = await stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest(), metadata=(bearer(TOKEN),))
        assert info.model.id == "tinyq"
        # Not as the stream that it is: a refusal that comes while gRPC's client still sends is INTERNAL to it.
        reflection = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reflection(b"", metadata=(bearer(TOKEN),))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    process.terminate()
    code, written = await ended(process)
    assert code == 0 and "/presift.v1.DraftService/GetInfo" in collector.names, written
    await server.grpc.stop(0)


async def test_a_target_is_only_for_those_with_its_token(monkeypatch, capsys):
    monkeypatch.setattr("presift.target.__main__.engine_options", lambda settings: None)
    monkeypatch.setattr("presift.target.__main__.SglangEngine", lambda options: EchoEngine())
    settings = TargetSettings(_cli_parse_args=["--model=echo", f"--listen={HOST}:0", f"--service-token={TOKEN}"])
    serving, written = asyncio.create_task(serve(settings)), ""
    async with asyncio.timeout(30):
        while " ready on " not in written:
            await asyncio.sleep(0.01)
            written += capsys.readouterr().out
    request = target_pb2.TargetServiceGenerateRequest(token_ids=[1], sampling=target_pb2.Sampling(max_new_tokens=1))
    async with grpc.aio.insecure_channel(written.partition(" ready on ")[2].partition(": ")[0]) as channel:
        stub = target_pb2_grpc.TargetServiceStub(channel)
        for metadata in ((), (bearer(OTHER),)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Generate(request, metadata=metadata).read()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await stub.Generate(request, metadata=(bearer(TOKEN),)).read()).delta.token_ids == [1]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving


async def test_limits_that_redis_would_not_count_are_no_limits(start, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("tenants:\n  acme: {concurrency: 2}\n")
    with embedded_cache() as cache, Redis.from_url(cache.url) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", f">{TOKEN}", "~*", "+@all", "-@scripting")
        url = f"unix://app:{TOKEN}@{cache.url.removeprefix('unix://')}"
        code, written = await ended(await start("orchestrator", f"--cache-url={url}", f"--api-keys-file={keys}"))
    assert code == 1 and "refuses the cache's scripts (NOPERM)" in written
    assert "Traceback" not in written and TOKEN not in written


@pytest.mark.parametrize("service", ["draft", "orchestrator"])
async def test_without_knowing_callers_only_loopback_is_bound(start, service):
    flags = ["--model=nowhere"] if service == "draft" else []
    code, written = await ended(await start(service, *flags, listen="0.0.0.0:0"))
    assert code == 1 and "listen is 0.0.0.0:0" in written and "--insecure" in written and "Traceback" not in written


async def test_so_it_is_with_a_target(tiny_model):
    settings = TargetSettings(_cli_parse_args=[f"--model={tiny_model('tinyq')}", "--listen=0.0.0.0:0"])
    with pytest.raises(InvalidRequest, match="--insecure"):
        await serve(settings)


async def test_an_insecure_draft_listens_beyond_loopback(start, tiny_model):
    flags = ("--model", str(tiny_model("tinyq")), "--threads=1", "--insecure")
    process = await start("draft", *flags, listen="0.0.0.0:0")
    assert (await ready(process)).startswith("0.0.0.0:")


@pytest.mark.parametrize(
    "flags",
    [
        ["--service-token=xylophone"],
        ["--service-token=xylophone-xylophone", "--service-token-file=/nowhere"],
        ["--service-token=xylophone-xylophone", "--log-level=xylophone"],
        ["--service-token=xylophone-xylophone", "--tls-cert=/nowhere"],
        ["--cache-url=redis://:xylophone@host:x", "--tenant-salt=xylophone"],
        ["--cache-url=xylophone"],
    ],
)
async def test_a_start_that_fails_quotes_no_secret(start, flags):
    code, written = await ended(await start("orchestrator", *flags))
    assert code == 1 and "xylophone" not in written.replace("log_level", "")
