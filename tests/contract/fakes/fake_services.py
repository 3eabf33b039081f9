"""What an orchestrator's process finds behind it: a fake draft and a real target service, on sockets of their own."""

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import draft_pb2_grpc, target_pb2_grpc

from ...echo_engine import ECHO_MODEL, EchoEngine
from .services import FakeDraft, model
from .stack import LOCAL


def engine(**options):
    """The target's, with the fakes' tokenizer."""
    return EchoEngine(model=replace(ECHO_MODEL, tokenizer_fingerprint="f1"), **options)


@asynccontextmanager
async def services_behind(target_engine):
    """The orchestrator's flags that lead to them."""
    target = TargetServicer(Admission(max_running=16, max_waiting=64))
    target.use(target_engine)
    async with AsyncExitStack() as running:
        flags = []
        for name, add, service in (
            ("draft", draft_pb2_grpc.add_DraftServiceServicer_to_server, FakeDraft(model("draft"))),
            ("target", target_pb2_grpc.add_TargetServiceServicer_to_server, target),
        ):
            server = GrpcServer(ServerOptions(LOCAL), [])
            add(service, server.grpc)
            flags.append(f"--{name}-address=127.0.0.1:{await server.start()}")
            running.push_async_callback(server.grpc.stop, 0)
        yield flags
