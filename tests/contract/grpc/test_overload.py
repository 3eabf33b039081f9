"""More callers than there is room for: who waits, who is refused, what that holds, and who is not disturbed."""

import asyncio
import os
import sys

import grpc
import psutil
import pytest

from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.admission.request_cost import request_cost
from presift.orchestrator.api.grpc.requests import request_from_wire
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.perf_model import location_of
from presift.orchestrator.routing.cost_model import TokenWork
from presift.rpc.codec import model_from_wire
from presift.target.admission import Admission
from presift.v1 import orchestrator_pb2_grpc

from ..fakes.services import FakeTarget, hangs, model
from ..fakes.stack import Answer, Refusal, refusal_of, request

LONG = list(range(100, 200))
GENERATE = "/presift.v1.OrchestratorService/Generate"
MIB = 2**20


def ask(stack, prompt, tenant=None, **options):
    """A task that reads the whole answer."""
    metadata = () if tenant is None else (("presift-tenant", tenant),)
    return asyncio.create_task(_answer(stack.stub.Generate(request(prompt, **options), metadata=metadata)))


async def _answer(call):
    return Answer.of([event async for event in call])


@pytest.fixture
async def busy(open_stack):
    """limits -> a stack with one answer that pauses, and its task."""

    async def busy(**limits):
        stack = await open_stack(limits=QueueLimits(max_running=1, **limits))
        stack.target.pause_after = 1
        running = ask(stack, [1, 2, 3])
        await stack.settle(lambda: stack.target.running == 1)
        return stack, running

    return busy


async def test_what_is_too_much_is_refused_with_retry_info(busy):
    stack, running = await busy(max_waiting=3)
    waiting = [ask(stack, [4, 5]) for _ in range(3)]
    await stack.settle(lambda: stack.admission.waiting == 3)
    refusal = await stack.refused([6])
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert (refusal.field, refusal.value, refusal.limit) == ("waiting_requests", "4", "<= 3")
    assert refusal.retry_after_s > 0
    assert len(stack.target.calls) == 1
    stack.target.gate.set()
    answers = await asyncio.gather(running, *waiting)
    assert [answer.token_ids for answer in answers] == [[3, 2, 1], [5, 4], [5, 4], [5, 4]]


async def test_explain_takes_its_turn_too(busy):
    stack, running = await busy(max_waiting=0)
    from presift.v1 import orchestrator_pb2

    asked = orchestrator_pb2.ExplainRequest(prompt=request(LONG).prompt)
    refusal = await refusal_of(stack.stub.Explain(asked))
    assert (refusal.reason, refusal.field) == ("OVERLOADED", "waiting_requests")
    assert (await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())).target.id == "target"
    stack.target.gate.set()
    await running
    assert (await stack.stub.Explain(asked)).decision.prompt_tokens == 100


async def test_a_flood_of_500_does_not_delay_another_tenant(busy):
    stack, running = await busy(max_waiting=600)
    flood = [ask(stack, [7, 8], "flood") for _ in range(500)]
    await stack.settle(lambda: stack.admission.waiting == 500)
    single = ask(stack, [9, 10], "single")
    await stack.settle(lambda: stack.admission.waiting == 501)
    stack.target.gate.set()
    await asyncio.gather(running, single, *flood)
    # One of the flood came first.
    assert [list(call.token_ids) for call in stack.target.calls[:3]] == [[1, 2, 3], [7, 8], [9, 10]]


async def test_a_flood_that_fills_the_room_gives_way(busy):
    stack, running = await busy(max_waiting=20)
    flood = [ask(stack, [7, 8], "flood") for _ in range(20)]
    await stack.settle(lambda: stack.admission.waiting == 20)
    single = ask(stack, [9, 10], "single")
    await stack.settle(lambda: any(task.done() for task in flood))
    stack.target.gate.set()
    assert (await single).token_ids == [10, 9]
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    refused = [Refusal.of(each) for each in outcomes if not isinstance(each, Answer)]
    assert [(each.reason, each.retry_after_s > 0) for each in refused] == [("OVERLOADED", True)]
    await running


async def test_a_deadline_that_passes_in_the_queue_goes_nowhere(busy):
    stack, running = await busy()
    call = stack.stub.Generate(request(LONG), timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        [event async for event in call]
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stack.settle(lambda: stack.admission.waiting == 0)
    stack.target.gate.set()
    await running
    assert stack.draft.calls == [] and len(stack.target.calls) == 1


async def test_an_invalid_request_is_rejected_without_queueing(busy):
    stack, running = await busy()
    refusal = await stack.refused([])
    assert refusal.reason == "INVALID_REQUEST"
    stack.target.gate.set()
    await running


async def test_a_slow_reader_holds_no_slot(open_stack):
    tokens = 8_000
    roomy = model("target", context_tokens=2 * tokens)
    stack = await open_stack(limits=QueueLimits(max_running=1), target=roomy)
    stack.target.answer = lambda request: [65] * request.sampling.max_new_tokens
    # Without probes the window of a stream stays at 64 KiB; as it is, it grows to some MiB.
    async with grpc.aio.insecure_channel(stack.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        slow = stub.Generate(request([1, 2, 3], max_new_tokens=tokens))
        assert (await slow.read()).HasField("decision")
        # It reads no more: the target finishes all the same, and the slot is released.
        await stack.settle(lambda: len(stack.target.calls) == 1 and stack.target.running == 0)
        async with asyncio.timeout(20):
            assert (await stack.ask([4, 5], max_new_tokens=3)).token_ids == [65] * 3
        rest = []
        while (event := await slow.read()) is not grpc.aio.EOF:
            rest.append(event)
    assert sum(len(event.delta.token_ids) for event in rest) == tokens
    assert rest[-1].usage.completion_tokens == tokens
    assert len(rest) < tokens, "waiting deltas are joined"


async def test_orchestrators_that_admit_too_much_are_refused_by_the_target(open_stack, monkeypatch):
    """Four of them, each with the setting of one."""
    admission, generate = Admission(max_running=2, max_waiting=1), FakeTarget.Generate

    async def limited(self, request, context):
        with admission.admit():
            async for event in generate(self, request, context):
                yield event

    monkeypatch.setattr(FakeTarget, "Generate", limited)
    first = await open_stack()
    at = f"127.0.0.1:{first.ports['target']}"
    stacks = [first, *[await open_stack(target_at=at) for _ in range(3)]]
    first.target.pause_after = 1
    asking = [asyncio.create_task(stack.ask([1, 2, 3])) for stack in stacks for _ in range(2)]
    await first.settle(lambda: sum(task.done() for task in asking) == 5)
    for task in asking:
        if task.done():
            refused = Refusal.of(task.exception())
            assert (refused.reason, refused.field, refused.limit) == ("OVERLOADED", "waiting_requests", "<= 1")
            assert refused.retry_after_s > 0
    assert first.target.running == 3
    first.target.gate.set()
    await asyncio.wait(asking)
    assert [task.exception() for task in asking].count(None) == 3
    assert all(stack.admission.running == 0 for stack in stacks)


async def test_a_fallback_leaves_time_for_the_answer(open_stack):
    """The draft gets what is left without what the target is known to need; here next to nothing."""
    estimator = CostEstimator()
    target = location_of(model_from_wire(model("target")))
    estimator.calibrate(
        "target", target, [(TokenWork(tokens), 0.01 * tokens) for tokens in (50, 100, 200) for _ in "123"]
    )
    stack = await open_stack(estimator=estimator)
    stack.draft.faults.append(hangs)
    call = stack.stub.Generate(request(LONG, max_new_tokens=1), timeout=2.5)
    answer = Answer.of([event async for event in call])
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_TIMEOUT")
    share_s = float(answer.decision.detail.partition("no mask within ")[2].partition(" s")[0])
    assert 1.9 <= share_s <= 2.3, answer.decision.detail


@pytest.fixture
async def orchestrator(build):
    """flags -> the stack, the process of an orchestrator before it, and a channel."""
    started = []

    async def start(*flags):
        stack = await build()
        addresses = [f"--{name}-address=127.0.0.1:{port}" for name, port in stack.ports.items()]
        command = [sys.executable, "-m", "presift.orchestrator", "--listen=127.0.0.1:0", "--no-calibrate"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = await asyncio.create_subprocess_exec(
            *command, *addresses, *flags, stdout=asyncio.subprocess.PIPE, env=environment
        )
        ready = (await process.stdout.readline()).decode()
        channel = grpc.aio.insecure_channel(ready.partition(" ready on ")[2].rpartition(": ")[0])
        started.append((process, channel))
        return stack, process, channel

    yield start
    for process, channel in started:
        await channel.close()
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.processes
async def test_1000_long_prompts_wait_in_a_bounded_memory(orchestrator):
    limit_mib = 96
    stack, process, channel = await orchestrator("--max-running=1", f"--max-requests-mib={limit_mib}")
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
    stack.target.pause_after = 1
    running = asyncio.create_task(_answer(stub.Generate(request([1, 2, 3]))))
    await stack.settle(lambda: stack.target.running == 1)
    prompt = request([token % 1000 for token in range(65_536)])
    raw, generate = prompt.SerializeToString(), channel.unary_stream(GENERATE)
    room = limit_mib * MIB // request_cost(request_from_wire(prompt, Caller(), "")).held_bytes
    memory = psutil.Process(process.pid).memory_info
    before, peak = memory().rss, 0

    def is_settled():
        nonlocal peak
        peak = max(peak, memory().rss)
        return sum(call.done() for call in calls) == 1000 - room

    # A busy machine would otherwise receive all of them before it handles the first.
    on_the_way = asyncio.Semaphore(room + 64)

    async def send():
        async with on_the_way:
            return await _all(generate(raw))

    calls = [asyncio.create_task(send()) for _ in range(1000)]
    await stack.settle(is_settled)
    grown_mib = (peak - before) / MIB
    refusals = [Refusal.of(call.exception()) for call in calls if call.done()]
    assert {(each.code, each.field) for each in refusals} == {("RESOURCE_EXHAUSTED", "request_bytes")}
    assert all(each.retry_after_s > 0 for each in refusals)
    # 1,000 that wait hold 800 MiB (measured). On top of the limit comes what is just being received.
    assert grown_mib < limit_mib + 250, grown_mib

    stack.target.gate.set()
    assert (await running).token_ids == [3, 2, 1]
    outcomes = await asyncio.gather(*(call for call in calls if not call.done()), return_exceptions=True)
    # The target's context holds 400 tokens: each had its turn, and was compressed.
    assert len(outcomes) == room and all(isinstance(each, list) for each in outcomes), outcomes


async def _all(call):
    return [event async for event in call]
