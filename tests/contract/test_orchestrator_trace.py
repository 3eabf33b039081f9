"""One trace per request across the three services, and no word of the prompt in it."""

import logging

import pytest
from opentelemetry.trace import SpanKind

from .fakes.house import request
from .fakes.services import raises

SECRET = "xylophone"
PROMPT = f"{SECRET} " * 12


async def asked(house, telemetry, prompt=PROMPT, metadata=(), **options):
    """The spans of one request, once the orchestrator's own has ended."""
    telemetry.forget_spans()
    call = house.stub.Generate(request(prompt, **options), metadata=metadata)
    [event async for event in call]
    await house.settle(lambda: server_of(telemetry.spans, "OrchestratorService") is not None)
    return telemetry.spans


def server_of(spans, service):
    named = [span for span in spans if span.kind is SpanKind.SERVER and f"v1.{service}/" in span.name]
    return named[0] if named else None


def ancestors(span, spans):
    by_id = {each.context.span_id: each for each in spans}
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        yield span


async def test_one_trace(house, telemetry):
    spans = await asked(house, telemetry)
    assert len({span.context.trace_id for span in spans}) == 1
    root = server_of(spans, "OrchestratorService")
    assert root.parent is None
    for service in ("DraftService", "TargetService"):
        chain = list(ancestors(server_of(spans, service), spans))
        assert chain[0].kind is SpanKind.CLIENT and chain[-1] is root
    score = next(span for span in spans if span.name == "score")
    assert score in list(ancestors(server_of(spans, "DraftService"), spans))


async def test_spans_bear_the_words_of_the_architecture(house, telemetry):
    spans = await asked(house, telemetry)
    own = {span.name: span for span in spans if span.kind is SpanKind.INTERNAL}
    assert {"tokenize", "cache", "score", "decode"} <= own.keys()
    words = {"tokenize", "protect", "route", "cache", "score", "prefill", "lookahead", "select", "decode"}
    assert own.keys() <= words
    root = server_of(spans, "OrchestratorService")
    assert all(root in list(ancestors(span, spans)) for span in own.values())
    hit = await asked(house, telemetry)
    assert "score" not in {span.name for span in hit}


async def test_the_callers_trace_goes_on(house, telemetry):
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    spans = await asked(house, telemetry, metadata=(("traceparent", f"00-{trace_id}-{span_id}-01"),))
    assert {f"{span.context.trace_id:032x}" for span in spans} == {trace_id}
    assert f"{server_of(spans, 'OrchestratorService').parent.span_id:016x}" == span_id


@pytest.mark.parametrize("trouble", ["none", "defect", "fallback", "refusal", "template"])
async def test_no_word_of_the_prompt_is_told(house, telemetry, caplog, trouble):
    caplog.set_level(logging.DEBUG)
    if trouble == "defect":
        house.target.faults.append(raises(RuntimeError(f"cannot read {PROMPT}")))
    if trouble == "fallback":
        house.draft.faults.append(raises(RuntimeError(f"cannot score {PROMPT}")))
    telemetry.forget_spans()
    prompt = [("user", f"BREAK {PROMPT}")] if trouble == "template" else PROMPT
    try:
        await house.ask(prompt, max_new_tokens=0 if trouble == "refusal" else 5)
    except Exception as error:
        assert SECRET not in error.details()
    await house.settle(lambda: server_of(telemetry.spans, "OrchestratorService") is not None)
    said = [f"{span.name} {dict(span.attributes)} {span.status.description} {told(span)}" for span in telemetry.spans]
    assert said and not any(SECRET in text for text in said)
    assert SECRET not in caplog.text


def told(span):
    return [(event.name, dict(event.attributes or {})) for event in span.events]
