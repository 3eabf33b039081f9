"""DraftService on the wire, with a scorer whose every answer can be computed by hand."""

import asyncio
import threading

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from presift.core.errors import InternalError
from presift.core.masks import KvMask, TokenMask
from presift.core.plan import ModelInfo, Route
from presift.draft.scorer import ScoreResult, ScoreTimings
from presift.draft.servicer import DraftServicer
from presift.draft.work_queue import WorkQueue
from presift.rpc import codec
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import draft_pb2, draft_pb2_grpc, errors_pb2, plan_pb2

INFO = ModelInfo("fake", "r1", "f1", context_tokens=2000, layers=4, kv_heads=2, vocabulary_size=1000)
NAME = "presift.v1.DraftService"
BY_TARGET, BY_MASK = plan_pb2.KV_SELECTION_TARGET_LOOKAHEAD, plan_pb2.KV_SELECTION_DRAFT_MASK


class FakeScorer:
    """A token's importance is its id, in units of 1/1024; the lookahead counts up from the prompt's last token.

    A prompt that begins with SLOW waits until `gate` opens, looking at its cancel token; BROKEN raises.
    """

    SLOW, BROKEN, WRONG = 901, 902, 903

    def __init__(self):
        self.info = INFO
        self.gate = threading.Event()
        self.prompts, self.threads, self.running = [], set(), 0

    def score(self, task, cancel):
        self.threads.add(threading.get_ident())
        self.prompts.append(task.token_ids.tolist())
        self.running += 1
        try:
            self._act(int(task.token_ids[0]), cancel)
        finally:
            self.running -= 1
        importance = task.token_ids.astype(np.float32) / 1024 if task.policy else None
        last = int(task.token_ids[-1])
        lookahead = tuple(last + step + 1 for step in range(task.lookahead_tokens))
        return ScoreResult(importance, importance, lookahead, ScoreTimings(2.0, 1.0), len(task.salt))

    def _act(self, first, cancel):
        cancel.check()
        if first == self.BROKEN:
            raise RuntimeError("the prompt said: secret")
        if first == self.WRONG:
            raise InternalError("no attention")
        while first == self.SLOW and not self.gate.wait(0.002):
            cancel.check()


class Stack:
    """A running server, its parts and a stub."""

    def __init__(self, max_queue, drain_s):
        self.scorer = FakeScorer()
        self.queue = WorkQueue(max_queue)
        self.servicer = DraftServicer(self.queue, max_lookahead_tokens=16)
        self.server = GrpcServer(ServerOptions("127.0.0.1:0", 2**20, drain_s), [NAME])

    async def start(self):
        draft_pb2_grpc.add_DraftServiceServicer_to_server(self.servicer, self.server.grpc)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{await self.server.start()}")
        self.stub = draft_pb2_grpc.DraftServiceStub(self.channel)
        self.servicer.use(self.scorer)
        return self

    async def stop(self):
        self.scorer.gate.set()
        await self.channel.close()
        await self.server.grpc.stop(0)
        self.queue.close()

    async def settle(self, condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.002)


@pytest.fixture
async def open_stack():
    stacks = []

    async def build(max_queue=64, drain_s=5.0):
        stacks.append(await Stack(max_queue, drain_s).start())
        return stacks[-1]

    yield build
    for stack in stacks:
        await stack.stop()


@pytest.fixture
async def stack(open_stack):
    return await open_stack()


def request(ids, capacity=4, lookahead=0, importance=False, spans=(), **policy):
    values = {"window": 2, "start_layer": 0, "kernel": 1, "neighbors": 0} | policy
    return draft_pb2.ScoreRequest(
        token_ids=ids,
        policy=plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=capacity, **values)),
        lookahead_tokens=lookahead,
        include_importance=importance,
        protected_spans=[plan_pb2.Span(start=start, end=end) for start, end in spans],
    )


PLAIN = plan_pb2.SpecPc(capacity=4, window=2, start_layer=0, kernel=1, neighbors=0)


def kv_request(ids, selection, cascade=False, **options):
    """spec_kv of capacity 3 and window 1, or spec_kv_pc whose prompt stage keeps what `request` keeps."""
    asked = request(
        ids, **{name: options.pop(name) for name in ("lookahead", "importance", "spans") if name in options}
    )
    values = {"capacity": 3, "window": 1, "lookahead_tokens": 2, "mask": PLAIN, "selection": selection} | options
    kv = plan_pb2.SpecKv(**values)
    both = plan_pb2.Policy(spec_kv_pc=plan_pb2.SpecKvPc(prompt=PLAIN, kv=kv))
    asked.policy.CopyFrom(both if cascade else plan_pb2.Policy(spec_kv=kv))
    return asked


def reason_of(error):
    """(reason, metadata, retry delay in seconds) from `grpc-status-details-bin`."""
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    details = {any_pb2.Any.TypeName(detail): detail.value for detail in errors_pb2.Status.FromString(raw).details}
    info = errors_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
    retry = errors_pb2.RetryInfo.FromString(details.get("google.rpc.RetryInfo", b""))
    return info.reason, dict(info.metadata), retry.retry_delay.ToMilliseconds() / 1000


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value


async def test_the_highest_tokens_and_the_window_are_kept(stack):
    ids = [5, 900, 7, 800, 6, 3, 2, 1]
    response = await stack.stub.Score(request(ids, lookahead=3, importance=True))
    mask = TokenMask.from_bits(response.token_mask.kept, response.token_mask.prompt_tokens)
    assert mask.indices.tolist() == [1, 3, 6, 7]
    assert response.coverage == pytest.approx((900 + 800 + 2 + 1) / sum(ids))
    assert list(response.importance) == pytest.approx([value / 1024 for value in ids])
    assert list(response.lookahead_token_ids) == [2, 3, 4]
    assert (response.timings.prefill_ms, response.timings.lookahead_ms) == (2.0, 1.0)
    assert response.timings.queue_ms >= 0
    assert response.timings.select_ms > 0
    assert (response.model.id, response.model.revision, response.model.tokenizer_fingerprint) == ("fake", "r1", "f1")
    assert not response.HasField("kv_mask")


@pytest.mark.parametrize(
    ("wanted", "kept"), [(0.001, [6, 7]), (0.5, [1, 6, 7]), (0.9, [1, 3, 6, 7]), (1.0, [1, 3, 6, 7])]
)
async def test_a_capacity_that_adapts(stack, wanted, kept):
    """900, 800 and the window cover 0.99."""
    ids = [5, 900, 7, 800, 6, 3, 2, 1]
    adaptive = plan_pb2.Adaptive(coverage=wanted, min_capacity=2)
    response = await stack.stub.Score(request(ids, adaptive=adaptive))
    mask = TokenMask.from_bits(response.token_mask.kept, 8)
    assert mask.indices.tolist() == kept and not response.HasField("kv_capacity")
    assert response.coverage == pytest.approx(sum(ids[i] for i in kept) / sum(ids))


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize(("wanted", "capacity"), [(0.01, 2), (0.5, 2), (0.9, 3), (1.0, 3)])
async def test_an_adaptive_kv_capacity_is_reported_if_the_target_chooses(stack, cascade, wanted, capacity):
    """Window and final token cover nearly nothing, the next token half, both all but 0.01."""
    ids = [5, 900, 7, 800, 6, 3, 2, 1]
    adaptive = plan_pb2.Adaptive(coverage=wanted, min_capacity=2)
    prompt = plan_pb2.SpecPc(capacity=6, window=2, start_layer=0, kernel=1, neighbors=0)
    asked = kv_request(ids, BY_TARGET, cascade, adaptive=adaptive)
    if cascade:
        asked.policy.spec_kv_pc.prompt.CopyFrom(prompt)
    response = await stack.stub.Score(asked)
    assert response.kv_capacity == capacity and list(response.lookahead_token_ids) == [2, 3]
    read = 900 + 800 + 7 + 6 + 2 + 1 if cascade else sum(ids)
    assert response.kv_coverage == pytest.approx((900 + 2 + 1 + (800 if capacity == 3 else 0)) / read)
    asked.policy.spec_kv_pc.kv.ClearField("adaptive") if cascade else asked.policy.spec_kv.ClearField("adaptive")
    assert not (await stack.stub.Score(asked)).HasField("kv_capacity")


async def test_importance_is_sent_only_if_asked_for(stack):
    assert not (await stack.stub.Score(request(range(1, 9)))).importance


async def test_protected_spans_are_kept_before_what_scores_high(stack):
    response = await stack.stub.Score(request([1, 1, 900, 800, 700, 3, 2, 1], spans=[(0, 2)]))
    mask = TokenMask.from_bits(response.token_mask.kept, 8)
    assert mask.indices.tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("n", [1, 3, 4])
async def test_a_prompt_that_fits_is_kept_whole_and_has_no_coverage(stack, n):
    response = await stack.stub.Score(request(range(1, n + 1), lookahead=2, importance=True))
    assert TokenMask.from_bits(response.token_mask.kept, n).kept_tokens == n
    assert not response.HasField("coverage")
    assert not response.importance
    assert list(response.lookahead_token_ids) == [n + 1, n + 2]


async def test_spec_kv_by_the_targets_queries_needs_only_the_lookahead(stack):
    response = await stack.stub.Score(kv_request(range(1, 9), BY_TARGET))
    assert TokenMask.from_bits(response.token_mask.kept, 8).kept_tokens == 8
    assert list(response.lookahead_token_ids) == [9, 10]
    assert not (response.HasField("kv_mask") or response.HasField("coverage") or response.importance)
    seen = await stack.stub.Score(kv_request(range(1, 9), BY_TARGET, lookahead=4, importance=True))
    assert len(seen.importance) == 8
    assert list(seen.lookahead_token_ids) == [9, 10, 11, 12]
    assert (seen.token_mask, seen.HasField("coverage")) == (response.token_mask, False)


async def test_spec_kv_by_the_drafts_mask_keeps_capacity_and_the_final_token(stack):
    ids = [5, 900, 7, 800, 6, 3, 2, 1]
    response = await stack.stub.Score(kv_request(ids, BY_MASK))
    mask = codec.token_mask_from_wire(response.token_mask)
    assert mask.indices.tolist() == [1, 3, 6, 7]
    assert codec.kv_mask_from_wire(response.kv_mask) == KvMask.uniform(mask)
    assert response.coverage == pytest.approx((900 + 800 + 2 + 1) / sum(ids))
    assert not response.lookahead_token_ids
    protected = await stack.stub.Score(kv_request(ids, BY_MASK, spans=[(4, 6)], lookahead=3))
    assert codec.kv_mask_from_wire(protected.kv_mask).kept[0, 0].nonzero()[0].tolist() == [4, 5, 6, 7]
    assert list(protected.lookahead_token_ids) == [2, 3, 4]


async def test_spec_kv_pc_is_spec_pc_and_a_lookahead(stack):
    ids = [5, 900, 7, 800, 6, 3, 2, 1]
    both, alone = await stack.stub.Score(kv_request(ids, BY_TARGET, cascade=True)), await stack.stub.Score(request(ids))
    assert (both.token_mask, both.coverage) == (alone.token_mask, alone.coverage)
    assert list(both.lookahead_token_ids) == [2, 3]
    assert not both.HasField("kv_mask")
    fits = await stack.stub.Score(kv_request(range(1, 5), BY_TARGET, cascade=True))
    assert (codec.token_mask_from_wire(fits.token_mask).kept_tokens, list(fits.lookahead_token_ids)) == (4, [5, 6])


async def test_the_same_request_gives_the_same_reply(stack):
    replies = [await stack.stub.Score(request(range(1, 30))) for _ in range(2)]
    for reply in replies:
        reply.ClearField("timings")
    assert replies[0] == replies[1]


async def test_info(stack):
    info = await stack.stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest())
    assert info.model.vocabulary_size == 1000
    assert info.max_queue == 64
    assert codec.known_routes(info.supported_routes) == {Route.SPEC_PC, Route.SPEC_KV, Route.SPEC_KV_PC}


INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (request([]), (INVALID, "INVALID_REQUEST", "token_ids", ">= 1")),
        (request([1, 1000]), (INVALID, "INVALID_REQUEST", "token_ids", "< 1000")),
        (request([1] * 2001), (INVALID, "PROMPT_TOO_LONG", "token_ids", "<= 2000")),
        (request([1] * 9, lookahead=17), (INVALID, "INVALID_REQUEST", "lookahead_tokens", "<= 16")),
        (request([1] * 9, capacity=1), (INVALID, "INVALID_REQUEST", "spec_pc.capacity", ">= window (2)")),
        (request([1] * 9, start_layer=4), (INVALID, "INVALID_REQUEST", "spec_pc.start_layer", "< 4")),
        (request([1] * 9, pool=99), (INVALID, "INVALID_REQUEST", "policy.pool", "one of")),
        (request([1] * 9, spans=[(8, 10)]), (INVALID, "INVALID_REQUEST", "protected_spans", "<= 9")),
        (request([1] * 9, spans=[(5, 5)]), (INVALID, "INVALID_REQUEST", "protected_spans", "start < end")),
        (request([1] * 9, spans=[(0, 5)]), (PRECONDITION, "BUDGET_EXCEEDED", "protected_spans", "capacity (4)")),
        (draft_pb2.ScoreRequest(token_ids=[1]), (INVALID, "INVALID_REQUEST", "policy", "spec_pc")),
        (
            kv_request([1] * 9, BY_TARGET, lookahead_tokens=17),
            (INVALID, "INVALID_REQUEST", "spec_kv.lookahead_tokens", "<= 16"),
        ),
        (
            kv_request([1] * 9, BY_TARGET, cascade=True, lookahead_tokens=17),
            (INVALID, "INVALID_REQUEST", "spec_kv.lookahead_tokens", "<= 16"),
        ),
        (
            kv_request([1] * 9, BY_MASK, cascade=True),
            (INVALID, "INVALID_REQUEST", "spec_kv_pc.kv.selection", "target_lookahead"),
        ),
        (
            kv_request([1] * 9, BY_MASK, mask=plan_pb2.SpecPc(start_layer=4)),
            (INVALID, "INVALID_REQUEST", "spec_pc.start_layer", "< 4"),
        ),
        *(
            (
                kv_request([1] * 9, selection, spans=[(0, 3)]),
                (PRECONDITION, "BUDGET_EXCEEDED", "protected_spans", "(3)"),
            )
            for selection in (BY_TARGET, BY_MASK)
        ),
        (
            kv_request([1] * 9, BY_TARGET, cascade=True, spans=[(0, 3)]),
            (PRECONDITION, "BUDGET_EXCEEDED", "protected_spans", "(4)"),
        ),
    ],
)
async def test_bad_requests_have_their_status_and_never_reach_the_model(stack, bad, expected):
    code, reason, field, limit = expected
    error = await refused(stack.stub.Score(bad))
    named, metadata, _ = reason_of(error)
    assert (error.code(), named, metadata["field"]) == (code, reason, field)
    assert limit in metadata["limit"]
    assert stack.scorer.prompts == []
    assert (await stack.stub.Score(request([1, 2, 3, 4, 5]))).token_mask.prompt_tokens == 5


async def test_a_message_that_is_no_protobuf_or_too_large(stack):
    raw = stack.channel.unary_unary(f"/{NAME}/Score")
    error = await refused(raw(b"\xff\xff\xff"))
    assert (error.code(), reason_of(error)[0]) == (INVALID, "INVALID_REQUEST")
    assert (await refused(raw(bytes(2**20 + 1)))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await stack.stub.Score(request([1, 2, 3, 4, 5]))


@pytest.mark.parametrize("first", [FakeScorer.BROKEN, FakeScorer.WRONG])
async def test_a_defect_is_internal_says_nothing_of_the_prompt_and_frees_the_place(stack, first):
    for _ in range(3):
        error = await refused(stack.stub.Score(request([first, 2, 3, 4, 5])))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in f"{error.details()} {error.trailing_metadata()}"
    assert stack.queue.in_flight == 0
    await stack.stub.Score(request([1, 2, 3, 4, 5]))


async def test_a_full_queue_says_when_to_come_back(open_stack):
    stack = await open_stack(max_queue=2)
    slow = [stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 5 + index])) for index in range(3)]
    await stack.settle(lambda: stack.queue.in_flight == 3)
    error = await refused(stack.stub.Score(request([1, 2, 3, 4, 5])))
    reason, metadata, delay_s = reason_of(error)
    assert (error.code(), reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert (metadata["field"], metadata["value"]) == ("queue", "2")
    assert delay_s > 0
    stack.scorer.gate.set()
    assert len(await asyncio.gather(*slow)) == 3
    await stack.stub.Score(request([1, 2, 3, 4, 5]))


async def test_a_cancelled_call_frees_the_model_and_its_place(open_stack):
    stack = await open_stack(max_queue=1)
    running = stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 5]))
    await stack.settle(lambda: stack.scorer.running == 1)
    waiting = stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 6]))
    await stack.settle(lambda: stack.queue.in_flight == 2)
    waiting.cancel()
    await stack.settle(lambda: stack.queue.in_flight == 1)
    running.cancel()
    await stack.settle(lambda: stack.queue.in_flight == 0 and stack.scorer.running == 0)
    await stack.stub.Score(request([1, 2, 3, 4, 5]))
    assert len(stack.scorer.prompts) == 2


async def test_a_client_that_dies_frees_its_place(stack):
    call = stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 5]))
    await stack.settle(lambda: stack.scorer.running == 1)
    await stack.channel.close(grace=None)
    await stack.settle(lambda: stack.queue.in_flight == 0 and stack.scorer.running == 0)
    assert call.done()


async def test_a_deadline_ends_the_work(stack):
    error = await refused(stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 5]), timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stack.settle(lambda: stack.queue.in_flight == 0 and stack.scorer.running == 0)


async def test_64_at_once_all_get_their_own_answer_from_one_thread(open_stack):
    stack = await open_stack(max_queue=63)
    calls = [stack.stub.Score(request([10, 20, index, 900, 5, 4], lookahead=1)) for index in range(64)]
    replies = await asyncio.gather(*calls)
    for index, reply in enumerate(replies):
        kept = TokenMask.from_bits(reply.token_mask.kept, 6).indices.tolist()
        assert kept == ([2, 3, 4, 5] if index > 20 else [1, 3, 4, 5])
        assert list(reply.lookahead_token_ids) == [5]
    assert len(stack.scorer.prompts) == 64
    assert len(stack.scorer.threads) == 1
    assert stack.queue.in_flight == 0


async def test_a_drain_finishes_what_runs_and_refuses_what_comes(open_stack):
    stack = await open_stack(drain_s=5.0)
    running = asyncio.ensure_future(stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 5])))
    await stack.settle(lambda: stack.scorer.running == 1)
    draining = asyncio.create_task(stack.server.drain())
    await asyncio.sleep(0.05)
    late = await refused(stack.stub.Score(request([1, 2, 3, 4, 5])))
    assert late.code() is grpc.StatusCode.UNAVAILABLE
    stack.scorer.gate.set()
    assert (await running).token_mask.prompt_tokens == 5
    await draining
    assert len(stack.scorer.prompts) == 1


async def test_a_drain_does_not_wait_for_ever(open_stack):
    stack = await open_stack(drain_s=0.1)
    running = asyncio.ensure_future(stack.stub.Score(request([FakeScorer.SLOW, 2, 3, 4, 5])))
    await stack.settle(lambda: stack.scorer.running == 1)
    async with asyncio.timeout(60):
        await stack.server.drain()
    await asyncio.to_thread(stack.queue.close)
    assert stack.scorer.running == 0
    assert (await refused(running)).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_calls_before_the_model_is_there_are_unavailable():
    stack = Stack(1, 1.0)
    await stack.start()
    stack.servicer._scorer = None
    for call in (stack.stub.Score(request([1])), stack.stub.GetInfo(draft_pb2.DraftServiceGetInfoRequest())):
        error = await refused(call)
        assert (error.code(), reason_of(error)[0]) == (grpc.StatusCode.UNAVAILABLE, "DRAFT_UNAVAILABLE")
    stub = health_pb2_grpc.HealthStub(stack.channel)
    health = await stub.Check(health_pb2.HealthCheckRequest(service=NAME))
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await stack.stop()


async def test_one_trace_runs_from_the_call_to_the_worker_thread(stack, monkeypatch):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("presift.telemetry.tracing.tracer", lambda: provider.get_tracer("test"))
    await stack.stub.Score(request([1, 2, 3, 4, 5]))
    found = {span.name: span for span in spans.get_finished_spans()}
    assert found["select"].parent.span_id == found["score"].context.span_id
    assert found["select"].attributes == {"presift.kept_tokens": 4}


async def test_the_kept_tokens_are_counted_for_the_salt(stack):
    asked = request([5, 6, 7, 8, 9, 10])
    asked.cache_salt = "abc"
    assert (await stack.stub.Score(asked)).cached_tokens == 3


async def test_64_new_prompts_of_a_tenant_neither_refuse_nor_starve_anothers(stack):
    slow = request([FakeScorer.SLOW, *range(20)])
    flooding = [stack.stub.Score(slow)]
    await stack.settle(lambda: stack.queue.in_flight == 1)
    flood = request([*range(30)])
    flood.cache_salt = "flood"
    flooding += [stack.stub.Score(flood) for _ in range(64)]
    await stack.settle(lambda: stack.queue.in_flight == 65)
    other = request([*range(30)])
    other.cache_salt = "other"
    answer = asyncio.ensure_future(stack.stub.Score(other))
    await stack.settle(lambda: any(call.done() for call in flooding))
    refused = [call for call in flooding if call.done()]
    assert [await call.code() for call in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED] and not answer.done()
    stack.scorer.gate.set()
    await answer
    await stack.settle(lambda: stack.queue.in_flight == 0)
