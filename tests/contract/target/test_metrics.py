"""What the target tells of its answers: stages as spans and as times, tokens, refusals, how full it is."""

import asyncio

import grpc
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from presift.core.answer import Finished
from presift.core.generation import EngineLoad, FinishReason
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target import request_metrics
from presift.target.admission import Admission
from presift.target.request_metrics import RequestMetrics, gauges_of
from presift.target.servicer import TargetServicer, _usage
from presift.v1 import plan_pb2, target_pb2, target_pb2_grpc

from ...echo_engine import ECHO_KV_TOKENS, EchoEngine

PROMPT, CAPACITY = list(range(10, 30)), 8
STAGES, DURATION = "presift.target.stage.duration", "gen_ai.server.request.duration"


class Stack:
    """A target over the echo engine, and its stub."""

    async def start(self, engine):
        self.engine, self.servicer = engine, TargetServicer(Admission(1, 0))
        self.servicer.use(engine)
        self.server = GrpcServer(ServerOptions("127.0.0.1:0"), [])
        target_pb2_grpc.add_TargetServiceServicer_to_server(self.servicer, self.server.grpc)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{await self.server.start()}")
        self.stub = target_pb2_grpc.TargetServiceStub(self.channel)
        return self

    def call(self, token_ids=PROMPT, kv=False, max_new_tokens=3):
        plan = None
        if kv:
            policy = plan_pb2.SpecKv(capacity=CAPACITY, window=2, kernel=1, pool=plan_pb2.POOL_MAX)
            plan = target_pb2.KvPlan(policy=policy, lookahead_token_ids=[1], keep_full_prefix=True)
        sampling = target_pb2.Sampling(max_new_tokens=max_new_tokens)
        return self.stub.Generate(
            target_pb2.TargetServiceGenerateRequest(token_ids=token_ids, sampling=sampling, kv_plan=plan)
        )

    async def ask(self, *arguments, **options):
        events = [event async for event in self.call(*arguments, **options)]
        await self.idle()
        return events[-1].usage

    async def idle(self):
        async with asyncio.timeout(60):
            while self.engine.running_requests or self.server.calls.running:
                await asyncio.sleep(0.005)

    async def stop(self):
        await self.channel.close()
        await self.server.grpc.stop(0)


@pytest.fixture
async def start():
    stacks = []

    async def start(**options):
        stacks.append(await Stack().start(EchoEngine(**options)))
        return stacks[-1]

    yield start
    for stack in stacks:
        await stack.stop()


def stages_of(telemetry):
    """(stage, whether it failed) of the spans within the target, in the order of their beginning."""
    inner = [span for span in telemetry.spans if span.kind is SpanKind.INTERNAL]
    inner.sort(key=lambda span: (span.start_time, span.end_time))
    return [(span.name, span.status.status_code is StatusCode.ERROR) for span in inner]


async def test_an_answer_has_stages(start, telemetry):
    stack, before = await start(), telemetry.total(STAGES)
    await stack.ask()
    assert stages_of(telemetry) == [("prefill", False), ("decode", False)]
    server = next(span for span in telemetry.spans if span.kind is SpanKind.SERVER)
    prefill, decode = (next(span for span in telemetry.spans if span.name == name) for name in ("prefill", "decode"))
    assert {prefill.parent.span_id, decode.parent.span_id} == {server.context.span_id}
    assert prefill.start_time <= prefill.end_time == decode.start_time <= decode.end_time
    assert telemetry.total(STAGES) == before + 2


def test_selecting_kv_takes_its_time_before_the_first_token():
    measure = RequestMetrics()
    measure.is_admitted = True
    measure.ttft_ms = 100.0
    measure.finished = Finished(20, 0, 3, FinishReason.LENGTH, 9, score_ms=30.0, publish_ms=20.0)
    assert measure.stages(250.0) == [
        ("prefill", 0.0, 50.0),
        ("score", 50.0, 80.0),
        ("publish", 80.0, 100.0),
        ("decode", 100.0, 250.0),
    ]


def test_renewals_take_no_time_before_the_first_token():
    measure = RequestMetrics()
    measure.is_admitted = True
    measure.ttft_ms = 100.0
    measure.finished = Finished(20, 0, 3, FinishReason.LENGTH, 9, score_ms=90.0, publish_ms=60.0, renewals=5)
    assert measure.stages(250.0) == [("prefill", 0.0, 100.0), ("decode", 100.0, 250.0)]


def test_what_an_engine_says_too_much_does_not_begin_before_the_request():
    measure = RequestMetrics()
    measure.is_admitted = True
    measure.ttft_ms = 10.0
    measure.finished = Finished(20, 0, 3, FinishReason.LENGTH, 9, score_ms=30.0, publish_ms=20.0)
    assert all(0.0 <= began <= ended for _, began, ended in measure.stages(12.0))


@pytest.mark.parametrize(("accepted", "each_s"), [(0, 0.1), (1, 0.1), (5, 0.18)])
def test_accepted_tokens_take_no_step(monkeypatch, accepted, each_s):
    recorded = {}
    monkeypatch.setattr(request_metrics, "record", lambda name, value, **_: recorded.update({name: value}))
    monkeypatch.setattr(RequestMetrics, "now_ms", lambda _: 1000.0)
    with request_metrics.request_metrics("m") as measure:
        measure.ttft_ms = 100.0
        measure.finished = Finished(20, 0, 10, FinishReason.LENGTH, 9, accepted_tokens=accepted)
    assert recorded["gen_ai.server.time_per_output_token"] == pytest.approx(each_s)


def test_what_the_engine_reports_of_kv_is_in_the_usage():
    reported = {
        "renewals": 3,
        "renewals_skipped": 2,
        "accepted_tokens": 5,
        "kv_tokens_peak": 80,
        "kv_tokens_mean": 70.5,
        "coverage": 0.75,
        "coverage_min": 0.5,
    }
    usage = _usage(Finished(20, 0, 10, FinishReason.LENGTH, 9, **reported), RequestMetrics(), "", None)
    assert {name: getattr(usage, name) for name in reported} == reported


async def test_an_entry_that_is_found_was_not_selected_again(start, telemetry):
    stack = await start()
    assert not (await stack.ask(kv=True)).reused_entry
    assert [name for name, _ in stages_of(telemetry)] == ["prefill", "score", "publish", "decode"]
    telemetry.forget_spans()
    assert (await stack.ask(kv=True)).reused_entry
    assert [name for name, _ in stages_of(telemetry)] == ["prefill", "decode"]


async def test_tokens_are_counted_as_they_were_got(start, telemetry):
    stack, kinds = await start(), ("prefilled", "cached", "generated")

    def told():
        return [telemetry.total("presift.target.tokens", kind=kind) for kind in kinds]

    async def more(**options):
        before = told()
        await stack.ask(**options)
        return [now - old for now, old in zip(told(), before, strict=True)]

    assert await more() == [20, 0, 3]
    assert await more() == [1, 19, 3]  # the final token is always read
    assert await more(kv=True) == [1, 19, 3]
    assert await more(kv=True) == [1, CAPACITY, 3]  # the entry stands for the others
    before = told()
    await stack.stub.Prefill(target_pb2.PrefillRequest(token_ids=range(50, 60)))
    assert told()[0] == before[0] + 10


async def test_renewals_and_accepted_tokens_are_counted(start, telemetry, monkeypatch):
    stack, names = await start(), ("done", "skipped")
    read = stack.engine._read
    reported = {"renewals": 3, "renewals_skipped": 2, "accepted_tokens": 5}
    monkeypatch.setattr(stack.engine, "_read", lambda *arguments: read(*arguments) | reported)

    def told():
        renewals = [telemetry.total("presift.target.kv.renewals", outcome=name) for name in names]
        return [*renewals, telemetry.total("presift.target.lookahead.accepted")]

    before = told()
    usage = await stack.ask(kv=True)
    assert [now - old for now, old in zip(told(), before, strict=True)] == [3, 2, 5]
    assert (usage.renewals, usage.renewals_skipped, usage.accepted_tokens) == (3, 2, 5)


async def test_a_disconnect_is_recorded_as_a_disconnect(start, telemetry):
    stack = await start(token_delay_s=0.01)
    before = [telemetry.total(DURATION, error="CANCELLED"), telemetry.total("presift.target.aborted")]
    call = stack.call(max_new_tokens=4000)
    await call.read()
    call.cancel()
    await stack.idle()
    assert [telemetry.total(DURATION, error="CANCELLED"), telemetry.total("presift.target.aborted")] == [
        each + 1 for each in before
    ]
    assert stages_of(telemetry) == [("prefill", False), ("decode", True)]


@pytest.mark.parametrize(("token_ids", "reason"), [([600], "INVALID_REQUEST"), ([1] * 5000, "PROMPT_TOO_LONG")])
async def test_a_refusal_is_counted_and_is_no_abort(start, telemetry, token_ids, reason):
    stack = await start()
    names = ("presift.target.refused", "presift.target.aborted")
    before = [telemetry.total(name) for name in names]
    with pytest.raises(grpc.aio.AioRpcError):
        await stack.ask(token_ids)
    await stack.idle()
    assert [telemetry.total(name) for name in names] == [before[0] + 1, before[1]]
    assert telemetry.total("presift.target.refused", reason=reason) >= 1
    assert stages_of(telemetry) == []  # nothing of it was begun


async def test_gauges_show_how_full_it_is(start):
    stack = await start(token_delay_s=0.01)

    def shown():
        return {each.name: [value for value, _ in each.read()] for each in gauges_of(stack.engine.load)}

    call = stack.call(max_new_tokens=4000)
    await call.read()
    assert shown() == {
        "presift.target.running": [1],
        "presift.target.waiting": [0],
        "presift.target.kv.held": [20],
        "presift.target.kv.free": [ECHO_KV_TOKENS - 20],
    }
    call.cancel()


async def test_before_the_engine_says_anything_there_is_nothing_to_show():
    assert [list(each.read()) for each in TargetServicer(Admission(1, 1)).gauges()] == [[]] * 4
    assert [list(each.read()) for each in gauges_of(lambda: EngineLoad(1, 2, 3, 4))] == [
        [(value, {})] for value in (1, 2, 4, 3)
    ]
