"""A target process over the echo engine: every answer can be worked out by hand. `--leak` plants what a soak must find.

Run as a module by the fault suite: `python -m echo_target --listen HOST:PORT`. With `--tokenizer FOLDER` the ids are
that tokenizer's, and tool calls and reasoning are parsed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from echo_engine import ECHO_MODEL, EchoEngine
from tokenizers import Tokenizer

from presift.core.fingerprint import fingerprint
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.engine import Event, GenerateRequest
from presift.target.servicer import TargetServicer
from presift.v1 import target_pb2, target_pb2_grpc

_LEAKED_BYTES = 512 * 1024


class LeakyEngine(EchoEngine):
    """Loses memory, a file descriptor, a task and the KV slots of one token with every 4th answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lost: list[Any] = []
        self._answers = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self._answers += 1
        if self._answers % 4 == 0:
            never = asyncio.create_task(asyncio.Event().wait())
            self._lost.append((bytes([1]) * _LEAKED_BYTES, socket.socket(), never))
            self._held_tokens += 1
        async for event in super().generate(request):
            yield event


def _text_options(folder: Path) -> dict[str, Any]:
    """Those of an engine that reads and writes with a tokenizer."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    model = replace(ECHO_MODEL, tokenizer_fingerprint=fingerprint(path.read_bytes()))
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    return {"model": model, "has_parsers": True, "text_of": texts.__getitem__}


async def serve(options: argparse.Namespace) -> bool:
    """Serve until SIGTERM or SIGINT."""
    text = _text_options(options.tokenizer) if options.tokenizer else {}
    engine = (LeakyEngine if options.leak else EchoEngine)(
        token_delay_s=options.token_delay_s, max_running=options.max_running, **text
    )
    name = target_pb2.DESCRIPTOR.services_by_name["TargetService"].full_name
    server = GrpcServer(ServerOptions(options.listen, drain_s=options.drain_s), [name])
    servicer = TargetServicer(Admission(options.max_running, options.max_waiting))
    servicer.use(engine)
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    await server.set_serving(True)
    print(f"presift target ready on 127.0.0.1:{port}: {engine.info.model.id}, {engine.info.name}", flush=True)
    return await server.run_until_stopped()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--token-delay-s", type=float, default=0.0)
    parser.add_argument("--max-running", type=int, default=64)
    parser.add_argument("--max-waiting", type=int, default=1024)
    parser.add_argument("--drain-s", type=float, default=5.0)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--leak", action="store_true")
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with suppress(KeyboardInterrupt):
        return 0 if asyncio.run(serve(parser.parse_args())) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
