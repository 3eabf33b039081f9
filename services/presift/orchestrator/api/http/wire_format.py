"""How the APIs write events and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from presift.orchestrator.api.http.errors import ErrorResponse


class WireFormat:
    """How an API writes events and errors: the way of OpenAI's completions."""

    has_done: ClassVar[bool] = True

    def event_name(self, event: Mapping[str, Any]) -> str:
        """The name of an event, empty for none."""
        return ""

    def error_body(self, response: ErrorResponse) -> Mapping[str, Any]:
        """Instead of an answer."""
        return response.body

    def error_events(self, response: ErrorResponse) -> Sequence[Mapping[str, Any]]:
        """The last events of a stream that has failed."""
        return [response.body]


class TypedEvents(WireFormat):
    """Events that are named by their `type`, the last of which ends a stream."""

    has_done = False

    def event_name(self, event: Mapping[str, Any]) -> str:
        return str(event["type"])


COMPLETIONS = WireFormat()
