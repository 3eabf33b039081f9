"""A target process over an echo engine with room for the longest prompts: for the limits and for noisy neighbours.

Run as a module, with TOKENS_FILE the file to which it writes the tokens of each salt: `python -m large_target
TOKENIZER_FINGERPRINT TOKENS_FILE --first-token-s 0.1`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

from echo_engine import ECHO_MODEL, EchoEngine, _logprobs

from presift.core.answer import AnswerDelta, Finished
from presift.core.generation import FinishReason
from presift.core.plan import ModelInfo, Route
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.engine import Event, GenerateRequest
from presift.target.servicer import TargetServicer
from presift.telemetry.loop_stalls import observed_loop
from presift.v1 import target_pb2, target_pb2_grpc

# A bias for each of the most token ids that a request may name.
VOCABULARY = 1024
CONTEXT_TOKENS = 2_000_000
_WRITE_EVERY_S = 0.2
_SERVICE = target_pb2.DESCRIPTOR.services_by_name["TargetService"].full_name


class LargeEngine(EchoEngine):
    """Echoes a prompt, but remembers none, and the cost of a token does not grow with the prompt or the answer.

    The first token takes `first_token_s` seconds, each other one `token_s`. `tokens` counts those of prompts and
    answers by cache salt.
    """

    def __init__(self, model: ModelInfo, first_token_s: float, token_s: float) -> None:
        super().__init__(model=model, has_parsers=True)
        self.tokens = Counter[str]()
        self._first_token_s, self._token_s = first_token_s, token_s

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        ids, salt, sampling = request.token_ids, request.cache_salt, request.sampling
        size = int(ids.size)
        self.tokens[salt] += size
        for number in range(sampling.max_new_tokens):
            await asyncio.sleep(self._token_s if number else self._first_token_s)
            token = int(ids[number % size])
            self.tokens[salt] += 1
            yield AnswerDelta((token,), _logprobs((token,), sampling))
        held = size if request.kv_plan is None else request.kv_plan.held_tokens(size)
        yield Finished(size, 0, sampling.max_new_tokens, FinishReason.LENGTH, held)


async def serve(options: argparse.Namespace) -> bool:
    """Serve until SIGTERM."""
    model = replace(
        ECHO_MODEL,
        tokenizer_fingerprint=options.fingerprint,
        context_tokens=CONTEXT_TOKENS,
        layers=options.layers,
        kv_heads=options.kv_heads,
        vocabulary_size=VOCABULARY,
    )
    engine = LargeEngine(model, options.first_token_s, options.token_s)
    server = GrpcServer(ServerOptions("127.0.0.1:0"), [_SERVICE], [f"{_SERVICE}/{route}" for route in Route])
    servicer = TargetServicer(Admission(1024, 1024))
    servicer.use(engine)
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    await server.set_serving(True)
    writing = asyncio.create_task(_write(engine.tokens, options.tokens_file))
    print(f"presift target ready on 127.0.0.1:{port}: echo, echo", flush=True)
    async with observed_loop():
        is_clean = await server.run_until_stopped()
    writing.cancel()
    return is_clean


async def _write(tokens: Counter[str], path: Path) -> None:
    fresh, written = path.with_suffix(".new"), -1
    while True:
        if (total := tokens.total()) != written:
            fresh.write_text(json.dumps(tokens))
            fresh.replace(path)
            written = total
        await asyncio.sleep(_WRITE_EVERY_S)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("fingerprint")
    parser.add_argument("tokens_file", type=Path)
    parser.add_argument("--layers", type=int, default=ECHO_MODEL.layers)
    parser.add_argument("--kv-heads", type=int, default=ECHO_MODEL.kv_heads)
    parser.add_argument("--first-token-s", type=float, default=0.0)
    parser.add_argument("--token-s", type=float, default=0.0)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return 0 if asyncio.run(serve(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
