"""`tiny_stack.py FOLDER ROUTE`: sends one request by that route, and prints what came of it as JSON.

The draft is the real one, over the tiny model in FOLDER; the target echoes; the orchestrator is wired as usual.
Imports nothing of the tests: it also runs on a copy of the services.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from functools import partial

import grpc
from tokenizers import Tokenizer, models

import presift
from presift.cache.build_lock import NoBuildLock
from presift.cache.memory_store import MemoryStore
from presift.cache.store import CacheLimits
from presift.core.policies import SpecPc
from presift.draft.servicer import DraftServicer
from presift.draft.work_queue import WorkQueue
from presift.orchestrator.admission.quotas import Quotas
from presift.orchestrator.api.grpc.servicer import OrchestratorServicer
from presift.orchestrator.app import Edges, Tuning, wire
from presift.orchestrator.backends.draft_client import DraftClient
from presift.orchestrator.backends.target_client import TargetClient
from presift.orchestrator.config.reload import fixed_policy
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.routing.choice import Defaults
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import (
    draft_pb2_grpc,
    orchestrator_pb2,
    orchestrator_pb2_grpc,
    plan_pb2,
    target_pb2,
    target_pb2_grpc,
)

from ...echo_engine import ECHO_MODEL, EchoEngine

CAPACITY, WINDOW, PROMPT_TOKENS = 16, 4, 100
# Spans of the prompt that must be kept.
PROTECTED = [(3, 5)]
MESSAGE_BYTES = 2**20


def load(folder, _cancel):
    from presift.draft.transformers_scorer import TransformersScorer
    from presift.models.folder import resolve

    return TransformersScorer(resolve(folder))


async def serve(opened, register, servicer):
    """The address of a server with this servicer."""
    server = GrpcServer(ServerOptions("127.0.0.1:0"), [])
    register(servicer, server.grpc)
    port = await server.start()
    opened.push_async_callback(server.grpc.stop, 0)
    return f"127.0.0.1:{port}"


async def serve_draft(opened, folder):
    queue = WorkQueue(4)
    opened.callback(queue.close)
    draft = DraftServicer(queue, max_lookahead_tokens=32)
    draft.use((await queue.run(partial(load, folder))).result)
    return await serve(opened, draft_pb2_grpc.add_DraftServiceServicer_to_server, draft)


async def serve_target(opened):
    target = TargetServicer(Admission(4, 4))
    target.use(EchoEngine())
    return await serve(opened, target_pb2_grpc.add_TargetServiceServicer_to_server, target)


async def serve_orchestrator(opened, draft, target):
    words = models.WordLevel({f"w{i}": i for i in range(ECHO_MODEL.vocabulary_size)}, unk_token="w0")
    edges = Edges(
        draft=DraftClient(draft, MESSAGE_BYTES, PrefixIndex()),
        target=TargetClient(target, MESSAGE_BYTES),
        store=MemoryStore(CacheLimits()),
        lock=NoBuildLock(),
        tokenizer=PromptTokenizer(Tokenizer(words), None),
        quotas=Quotas(),
    )
    defaults = Defaults(SpecPc(CAPACITY, window=WINDOW, start_layer=0), compress_above_tokens=CAPACITY)
    policies = fixed_policy(defaults)
    tuning = Tuning(policies, defaults, CostEstimator(), calibrates=False, checks_tokenizer=False)
    app = wire(edges, tuning)
    opened.push_async_callback(app.aclose)
    await app.models.connect()
    servicer = OrchestratorServicer(app.pipeline, app.models, policies)
    return await serve(opened, orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server, servicer)


async def ask(address, route):
    request = orchestrator_pb2.GenerateRequest(
        prompt=orchestrator_pb2.Prompt(
            token_ids=orchestrator_pb2.TokenIds(ids=range(1, PROMPT_TOKENS + 1)),
            protected_spans=[plan_pb2.Span(start=start, end=end) for start, end in PROTECTED],
        ),
        route=plan_pb2.Route.Value(f"ROUTE_{route.upper()}"),
        sampling=target_pb2.Sampling(max_new_tokens=CAPACITY),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        events = [event async for event in orchestrator_pb2_grpc.OrchestratorServiceStub(channel).Generate(request)]
    decision, usage = events[0].decision, events[-1].usage
    return {
        "services": presift.__path__[0],
        "route": plan_pb2.Route.Name(decision.route),
        "policy": decision.policy.WhichOneof("policy"),
        "detail": decision.detail,
        "kept_tokens": usage.kept_tokens,
        "answer": [token_id for event in events[1:-1] for token_id in event.delta.token_ids],
    }


async def main(folder, route):
    async with AsyncExitStack() as opened:
        draft, target = await serve_draft(opened, folder), await serve_target(opened)
        print(json.dumps(await ask(await serve_orchestrator(opened, draft, target), route)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
