"""One trace per request across the three services, and no word of the prompt in it."""

import asyncio
import logging

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.trace import SpanKind

from ..fakes.services import raises
from ..fakes.stack import request

SECRET = "xylophone"
PROMPT = f"{SECRET} " * 12


async def asked(stack, telemetry, prompt=PROMPT, metadata=(), **options):
    """The spans of one request, once the orchestrator's own has ended."""
    telemetry.forget_spans()
    call = stack.stub.Generate(request(prompt, **options), metadata=metadata)
    [event async for event in call]
    await stack.settle(lambda: server_of(telemetry.spans, "OrchestratorService") is not None)
    return telemetry.spans


def server_of(spans, service):
    named = [span for span in spans if span.kind is SpanKind.SERVER and f"v1.{service}/" in span.name]
    return named[0] if named else None


def ancestors(span, spans):
    by_id = {each.context.span_id: each for each in spans}
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        yield span


async def test_one_trace(stack, telemetry):
    spans = await asked(stack, telemetry)
    assert len({span.context.trace_id for span in spans}) == 1
    root = server_of(spans, "OrchestratorService")
    assert root.parent is None
    for service in ("DraftService", "TargetService"):
        chain = list(ancestors(server_of(spans, service), spans))
        assert chain[0].kind is SpanKind.CLIENT and chain[-1] is root
    score = next(span for span in spans if span.name == "score")
    assert score in list(ancestors(server_of(spans, "DraftService"), spans))


ORCHESTRATOR, DRAFT, TARGET = (f"/presift.v1.{name}Service" for name in ("Orchestrator", "Draft", "Target"))


def edges(spans):
    """(parent, child) by name; gRPC's two spans of a call have one name."""
    by_id = {span.context.span_id: span for span in spans}
    return {(by_id[span.parent.span_id].name, span.name) for span in spans if span.parent is not None}


def ids(context):
    return context.trace_id, context.span_id


def linked(span):
    return [ids(link.context) for link in span.links]


async def test_spans_have_the_names_of_the_architecture(stack, telemetry):
    spans = await asked(stack, telemetry)
    root = f"{ORCHESTRATOR}/Generate"
    own = {(root, stage) for stage in ("protect", "tokenize", "route", "cache.get", "cache.claim", "cache.put")}
    score, generate = f"{DRAFT}/Score", f"{TARGET}/Generate"
    calls = {("score", score), (score, score), (root, generate), (generate, generate)}
    assert edges(spans) == own | calls | {(root, "score"), (root, "decode")}
    hit = await asked(stack, telemetry)
    stages = {"protect", "tokenize", "route", "cache.get", "decode"}
    assert edges(hit) == {(root, stage) for stage in stages} | {(root, generate), (generate, generate)}


async def test_a_hit_points_to_the_trace_that_made_it(stack, telemetry):
    miss, hit = await asked(stack, telemetry), await asked(stack, telemetry)
    (score,) = (span for span in miss if span.name == "score")
    assert {span.name: linked(span) for span in hit if span.links} == {"cache.get": [ids(score.context)]}
    assert score.context.trace_id not in {span.context.trace_id for span in hit}
    assert not any(span.links for span in miss)


async def test_a_waiting_request_links_to_the_shared_draft_span(stack, telemetry):
    telemetry.forget_spans()
    stack.draft.gate.clear()
    asking = [asyncio.create_task(stack.ask(PROMPT)) for _ in range(2)]
    await stack.settle(lambda: stack.draft.calls and stack.admission.running == 2)
    await asyncio.sleep(0.2)  # for the second one to wait for the first one's pass
    stack.draft.gate.set()
    first, second = await asyncio.gather(*asking)
    assert {first.cache, second.cache} == {"MISS", "SHARED"}
    ended = lambda: sum(span.name == f"{ORCHESTRATOR}/Generate" for span in telemetry.spans) == 2  # noqa: E731
    await stack.settle(ended)
    (score,) = (span for span in telemetry.spans if span.name == "score")
    (join,) = (span for span in telemetry.spans if span.name == "cache.join")
    assert linked(join) == [ids(score.context)]
    assert join.context.trace_id != score.context.trace_id


async def test_the_call_says_what_was_decided(stack, telemetry):
    root = server_of(await asked(stack, telemetry), "OrchestratorService")
    told = {key: value for key, value in root.attributes.items() if key.startswith(("presift.", "gen_ai."))}
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "target",
        "presift.route": "spec_pc",
        "presift.reason": "over_budget",
        "presift.cache": "miss",
        "presift.prompt_tokens": len(PROMPT),
        "presift.kept_tokens": 16,
        "presift.kv_tokens": 16,
        "gen_ai.usage.input_tokens": len(PROMPT),
        "gen_ai.usage.output_tokens": 5,
    }


async def test_health_is_not_traced(stack, telemetry):
    telemetry.forget_spans()
    reply = await health_pb2_grpc.HealthStub(stack.channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    await asked(stack, telemetry, "hi")
    assert not any("Health" in span.name for span in telemetry.spans)


async def test_the_callers_trace_goes_on(stack, telemetry):
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    spans = await asked(stack, telemetry, metadata=(("traceparent", f"00-{trace_id}-{span_id}-01"),))
    assert {f"{span.context.trace_id:032x}" for span in spans} == {trace_id}
    assert f"{server_of(spans, 'OrchestratorService').parent.span_id:016x}" == span_id


@pytest.mark.parametrize("trouble", ["none", "defect", "fallback", "refusal", "template"])
async def test_no_word_of_the_prompt_is_recorded(stack, telemetry, caplog, trouble):
    caplog.set_level(logging.DEBUG)
    if trouble == "defect":
        stack.target.faults.append(raises(RuntimeError(f"cannot read {PROMPT}")))
    if trouble == "fallback":
        stack.draft.faults.append(raises(RuntimeError(f"cannot score {PROMPT}")))
    telemetry.forget_spans()
    prompt = [("user", f"BREAK {PROMPT}")] if trouble == "template" else PROMPT
    try:
        await stack.ask(prompt, max_new_tokens=0 if trouble == "refusal" else 5)
    except Exception as error:
        assert SECRET not in error.details()
    await stack.settle(lambda: server_of(telemetry.spans, "OrchestratorService") is not None)
    said = [f"{span.name} {dict(span.attributes)} {span.status.description} {told(span)}" for span in telemetry.spans]
    assert said and not any(SECRET in text for text in said)
    assert SECRET not in caplog.text


def told(span):
    return [(event.name, dict(event.attributes or {})) for event in span.events]
