"""The cancellation ledger: every RPC that takes time, in every stage of it, ended in every way.

The services that are called see exactly one cancellation, and no slot, queue entry, shared call, lease or task is left.
(GetInfo calls no service and waits for nothing.)
"""

import asyncio
import threading
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from redis import Redis

from presift.cache.embedded import embedded_cache
from presift.cache.redis_build_lock import RedisBuildLock
from presift.cache.redis_client import RedisClient
from presift.cache.redis_store import RedisStore
from presift.cache.store import CacheLimits
from presift.core.plan import ModelInfo
from presift.draft.scorer import ScoreResult, ScoreTimings
from presift.draft.servicer import DraftServicer
from presift.draft.work_queue import WorkQueue
from presift.orchestrator.admission.admission import QueueLimits
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.servicer import TargetServicer
from presift.v1 import draft_pb2, draft_pb2_grpc, orchestrator_pb2, plan_pb2, target_pb2, target_pb2_grpc

from ...echo_engine import EchoEngine
from ..fakes.ledger import ENDINGS, Call, tasks
from ..fakes.services import hangs
from ..fakes.stack import ALL_ROUTES, request

LONG = list(range(100, 200))
ENDED = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
BRIEF_S = 0.05


def generate(prompt=LONG, **options):
    return Call("/presift.v1.OrchestratorService/Generate", True, request(prompt, **options))


def explain(**options):
    asked = request(LONG, route=plan_pb2.ROUTE_SPEC_KV)
    message = orchestrator_pb2.ExplainRequest(prompt=asked.prompt, route=asked.route, **options)
    return Call("/presift.v1.OrchestratorService/Explain", False, message)


# The orchestrator's stages: prepare the stack, the call, when it is there, who is to see the cancellation.
def at_the_draft(stack):
    stack.draft.faults.append(hangs)
    stack.target.faults.append(hangs)  # reached where the draft's share of the deadline ends first
    return lambda: len(stack.draft.calls) == 1


def at_draft_and_prefill(stack):
    stack.target.prefill_faults.append(hangs)
    is_at_the_draft = at_the_draft(stack)
    return lambda: is_at_the_draft() and len(stack.target.prefills) == 1


def before_the_first_token(stack):
    stack.target.faults.append(hangs)
    return lambda: stack.target.running == 1


def while_it_streams(stack):
    stack.target.pause_after = 2
    # Its first token has come.
    return lambda: (
        stack.target.running == 1 and len(stack.estimator.loads.answers()) == 1 and not len(stack.estimator.reading)
    )


@dataclass(frozen=True)
class Stage:
    call: Call
    prepare: object
    draft: int = 0
    target: int = 0
    prefill: int = 0

    def expected(self, ending):
        """A draft that is late is no error of Generate: the rest of the deadline is the target's."""
        goes_on = self.call.streams and self.draft and not self.prefill and ending is ENDINGS["deadline"]
        return self.draft, 1 if goes_on else self.target, self.prefill


BY_PC, BY_KV = {"route": plan_pb2.ROUTE_SPEC_PC}, {"route": plan_pb2.ROUTE_SPEC_KV}
STAGES = {
    "generate: the draft scores": Stage(generate(**BY_PC), at_the_draft, draft=1),
    "generate: draft and prefill": Stage(generate(**BY_KV), at_draft_and_prefill, draft=1, prefill=1),
    "generate: the target reads": Stage(generate([1, 2, 3]), before_the_first_token, target=1),
    "generate: the answer streams": Stage(generate([1, 2, 3]), while_it_streams, target=1),
    "explain: the draft scores": Stage(explain(), at_the_draft, draft=1),
    "explain: the target keeps": Stage(explain(include_kv_mask=True), before_the_first_token, target=1),
}


def nothing_is_left(stack):
    """Everything of the orchestrator that a request may hold."""
    estimator, admission = stack.estimator, stack.admission
    held = (admission.running, admission.waiting, admission.running_bytes, admission.waiting_bytes)
    held += (stack.app.pipeline.parts.explaining.running, stack.app.pipeline.parts.explaining.waiting)
    held += (stack.app.pipeline.parts.reading_masks.running, stack.app.pipeline.parts.reading_masks.waiting)
    flights = (len(stack.compressor._flights), len(stack.prefiller._flights))
    queues = (len(estimator.drafting), len(estimator.reading), len(estimator.loads.answers()))
    callers = len(stack.guard.idle_gate._waiting_callers)
    return not any((*held, *flights, *queues, callers, stack.server.calls.running))


def cancellations(stack):
    return stack.draft.cancelled, stack.target.cancelled, stack.target.prefills_cancelled


@ENDED
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
async def test_the_orchestrators(open_stack, stage, ending):
    stack = await open_stack(routes=ALL_ROUTES, drain_s=BRIEF_S)
    await stack.ask([9])
    before = tasks()
    await ending(stage.call, stack, stage.prepare(stack))
    await stack.settle(lambda: nothing_is_left(stack) and not tasks() - before)
    await stack.settle(lambda: cancellations(stack) == stage.expected(ending))
    assert stack.target.running == 0
    if ending is not ENDINGS["shutdown"]:
        stack.target.pause_after = None
        stack.target.faults.clear()
        assert (await stack.ask([4, 5])).token_ids == [5, 4]
        assert cancellations(stack) == stage.expected(ending)


@ENDED
async def test_a_request_that_waits_for_its_turn(open_stack, ending):
    stack = await open_stack(limits=QueueLimits(max_running=1), drain_s=BRIEF_S)
    stack.target.pause_after = 1
    running = stack.stub.Generate(request([1, 2, 3]))
    await stack.settle(lambda: stack.target.running == 1)
    await running.read(), await running.read()
    before = tasks()
    await ending(generate(), stack, lambda: stack.admission.waiting == 1)
    await stack.settle(lambda: stack.admission.waiting == stack.admission.waiting_bytes == 0 and not tasks() - before)
    assert stack.draft.calls == [] and len(stack.target.calls) == 1
    running.cancel()
    await stack.settle(lambda: nothing_is_left(stack) and stack.target.cancelled == 1)


@pytest.fixture(scope="module")
def valkey():
    with embedded_cache() as cache, Redis.from_url(cache.url) as admin:
        yield cache.url, admin


@ENDED
async def test_a_lease(open_stack, valkey, ending):
    url, admin = valkey
    admin.flushall()
    limits = CacheLimits(timeout_s=5.0, put_timeout_s=5.0)
    link = RedisClient(url, limits)
    store = RedisStore(link, limits)
    stack = await open_stack(drain_s=BRIEF_S, store=store, lease=RedisBuildLock(store))
    await stack.ask([9])
    stage = STAGES["generate: the draft scores"]
    is_at_the_draft = at_the_draft(stack)
    await ending(stage.call, stack, lambda: is_at_the_draft() and len(admin.keys("*:lease")) == 1)
    await stack.settle(lambda: nothing_is_left(stack) and admin.keys("*:lease") == [])
    await stack.settle(lambda: cancellations(stack) == stage.expected(ending))


class PatientScorer:
    """Scores nothing until it is cancelled; counts that."""

    def __init__(self):
        self.info = ModelInfo("fake", "r1", "f1", context_tokens=2000, layers=4, kv_heads=2, vocabulary_size=1000)
        self.begun = self.cancelled = 0
        self.gate = threading.Event()

    def score(self, task, cancel):
        self.begun += 1
        try:
            while not self.gate.wait(0.002):
                cancel.check()
        except Exception:  # Cancelled, or the deadline that it has been given
            self.cancelled += 1
            raise
        return ScoreResult(task.token_ids.astype(np.float32), task.token_ids.astype(np.float32), (), ScoreTimings())


@dataclass
class Service:
    """A service alone: its server, a channel, and what makes it."""

    server: GrpcServer
    parts: dict = field(default_factory=dict)

    async def start(self):
        self.address = f"127.0.0.1:{await self.server.start()}"
        self.channel = grpc.aio.insecure_channel(self.address)
        return self

    async def settle(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    async def stop(self):
        await self.channel.close()
        await self.server.grpc.stop(0)


@pytest.fixture
async def draft():
    queue, scorer = WorkQueue(8), PatientScorer()
    servicer, server = DraftServicer(queue, 16), GrpcServer(ServerOptions("127.0.0.1:0", drain_s=BRIEF_S), [])
    servicer.use(scorer)
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    service = await Service(server, {"queue": queue, "scorer": scorer}).start()
    yield service
    scorer.gate.set()
    await service.stop()
    queue.close()


def score(first=1):
    policy = plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=4, window=2, start_layer=0, kernel=1, neighbors=0))
    message = draft_pb2.ScoreRequest(token_ids=[first, 2, 3, 4, 5, 6], policy=policy)
    return Call("/presift.v1.DraftService/Score", False, message)


@ENDED
async def test_the_drafts_running_one(draft, ending):
    queue, scorer = draft.parts["queue"], draft.parts["scorer"]
    await draft.channel.channel_ready()
    before = tasks()
    await ending(score(), draft, lambda: scorer.begun == 1)
    await draft.settle(lambda: queue.in_flight == 0 and queue._admitted is None and not tasks() - before)
    await draft.settle(lambda: draft.server.calls.running == 0)
    assert (scorer.begun, scorer.cancelled) == (1, 1)


@ENDED
async def test_the_drafts_waiting_one(draft, ending):
    queue, scorer = draft.parts["queue"], draft.parts["scorer"]
    _, running = score().begin(draft.channel)
    await draft.settle(lambda: scorer.begun == 1)
    await ending(score(first=2), draft, lambda: queue.in_flight == 2)
    await draft.settle(lambda: queue.in_flight == (0 if ending is ENDINGS["shutdown"] else 1))
    assert scorer.begun == 1
    running.cancel()
    await draft.settle(lambda: queue.in_flight == 0 and queue._admitted is None)
    assert (scorer.begun, scorer.cancelled) == (1, 1)


@pytest.fixture
async def target():
    engine, admission = EchoEngine(token_delay_s=0.02, max_running=1), Admission(max_running=1, max_waiting=4)
    servicer, server = TargetServicer(admission), GrpcServer(ServerOptions("127.0.0.1:0", drain_s=BRIEF_S), [])
    servicer.use(engine)
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    service = await Service(server, {"engine": engine, "admission": admission}).start()
    yield service
    await service.stop()


def answer(token_ids=(5, 6, 7)):
    sampling = target_pb2.Sampling(max_new_tokens=4000, ignore_eos=True)
    message = target_pb2.TargetServiceGenerateRequest(token_ids=token_ids, sampling=sampling)
    return Call("/presift.v1.TargetService/Generate", True, message)


def prefill():
    return Call("/presift.v1.TargetService/Prefill", False, target_pb2.PrefillRequest(token_ids=[1, 2, 3]))


@ENDED
async def test_the_targets_running_answer(target, ending):
    engine, admission = target.parts["engine"], target.parts["admission"]
    await target.channel.channel_ready()
    before = tasks()
    await ending(answer(), target, lambda: engine.load().running == 1)
    await target.settle(lambda: engine.running_requests == admission._in_flight == 0 and not tasks() - before)
    await target.settle(lambda: target.server.calls.running == 0)
    assert engine.aborted == 1
    assert engine.load().free_kv_tokens == 65_536


@ENDED
async def test_the_targets_running_prefill(target, ending):
    engine, admission = target.parts["engine"], target.parts["admission"]
    engine.token_delay_s = 3600.0
    await ending(prefill(), target, lambda: engine.load().running == 1)
    await target.settle(lambda: engine.running_requests == admission._in_flight == target.server.calls.running == 0)
    assert engine.aborted == 1


@ENDED
@pytest.mark.parametrize("call", [answer([1]), prefill()], ids=["answer", "prefill"])
async def test_what_waits_in_the_targets_engine(target, call, ending):
    engine, admission = target.parts["engine"], target.parts["admission"]
    _, running = answer().begin(target.channel)
    await target.settle(lambda: engine.load().running == 1)
    await ending(call, target, lambda: engine.load().waiting == 1)
    left = 0 if ending is ENDINGS["shutdown"] else 1
    await target.settle(lambda: engine.running_requests == admission._in_flight == left)
    assert engine.aborted == 2 - left
    running.cancel()
    await target.settle(lambda: engine.running_requests == admission._in_flight == 0)
    assert engine.aborted == 2
