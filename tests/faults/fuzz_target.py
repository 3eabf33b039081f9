"""A target process over the echo engine, of a short context and the draft's vocabulary: for the fuzz."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import replace

from echo_engine import ECHO_MODEL, EchoEngine

from presift.core.plan import Route
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import target_pb2, target_pb2_grpc

_SERVICE = target_pb2.DESCRIPTOR.services_by_name["TargetService"].full_name


async def serve(fingerprint: str) -> bool:
    """Serve until SIGTERM."""
    model = replace(ECHO_MODEL, tokenizer_fingerprint=fingerprint, context_tokens=600, layers=4, kv_heads=2)
    engine = EchoEngine(model=model, remembered=64)
    server = GrpcServer(ServerOptions("127.0.0.1:0"), [_SERVICE], [f"{_SERVICE}/{route}" for route in Route])
    servicer = TargetServicer(Admission(64, 64))
    servicer.use(engine)
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    await server.set_serving(True)
    print(f"presift target ready on 127.0.0.1:{port}: echo, echo", flush=True)
    return await server.run_until_stopped()


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(not asyncio.run(serve(sys.argv[1])))
