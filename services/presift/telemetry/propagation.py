"""Callers' traces go on here: by `traceparent` alone. OpenTelemetry's own propagators trust them too far.

They log a bad `tracestate` or `baggage` as it came, before anybody was asked for a key; and baggage would travel on to
draft and target.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import CarrierT, Getter, default_getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PARENT = "traceparent"
# Version 00 has 55; a longer one is warned of at every call.
_MOST_CHARACTERS = 64


class TraceParentPropagator(TraceContextTextMapPropagator):
    """W3C trace context, of others without its `tracestate`."""

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        said = getter.get(carrier, _PARENT) or [""]
        known = {_PARENT: said[0]} if len(said[0]) <= _MOST_CHARACTERS else {}
        return super().extract(known, context)
