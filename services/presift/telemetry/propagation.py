"""Continues callers' traces by their `traceparent` only. OpenTelemetry's own propagators trust callers too much.

They log an invalid `tracestate` or `baggage` verbatim, before the caller is authenticated, and would forward baggage to
draft and target.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import CarrierT, Getter, default_getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PARENT = "traceparent"
# Version 00 has 55 characters; OpenTelemetry logs a warning for each longer one.
_MOST_CHARACTERS = 64


class TraceParentPropagator(TraceContextTextMapPropagator):
    """W3C trace context; ignores the `tracestate` of callers."""

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        values = getter.get(carrier, _PARENT) or [""]
        carried = {_PARENT: values[0]} if len(values[0]) <= _MOST_CHARACTERS else {}
        return super().extract(carried, context)
