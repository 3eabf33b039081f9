"""Callers' traces go on; nothing else of theirs is taken, passed on or logged."""

from opentelemetry import baggage, propagate, trace

from presift.telemetry.propagation import TraceParentPropagator
from presift.telemetry.tracing import Telemetry, exported

PARENT = f"00-{'1' * 32}-{'2' * 16}-01"


def test_a_trace_goes_on_and_nothing_else(caplog):
    with exported("orchestrator", Telemetry()):
        theirs = {"traceparent": PARENT, "tracestate": "xylophone;;", "baggage": "xylophone=1,;;="}
        context = propagate.extract(theirs)
        passed_on = {}
        propagate.inject(passed_on, context)
    span = trace.get_current_span(context).get_span_context()
    assert trace.format_trace_id(span.trace_id) == "1" * 32 and span.is_remote
    assert baggage.get_all(context) == {} and len(span.trace_state) == 0
    assert passed_on == {"traceparent": PARENT}
    assert caplog.records == []


def test_what_is_no_parent_begins_a_trace(caplog):
    for said in ("", "xylophone", "1" * 10_000):
        context = TraceParentPropagator().extract({"traceparent": said})
        assert not trace.get_current_span(context).get_span_context().is_valid
    assert caplog.records == []
