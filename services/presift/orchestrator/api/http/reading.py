"""The body of a call before its endpoint's schema, and the call's deadline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.body import parse_json_object, read_body
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.models import ServedModels
from presift.orchestrator.api.http.schema import MAX_TIMEOUT_S, Ignored
from presift.rpc.deadline import NO_DEADLINE, Deadline
from presift.rpc.large_input import in_thread_if_large

_TIMEOUT_HEADER = "presift-timeout-s"


@dataclass(frozen=True, slots=True)
class ReadBody:
    """A body that is not validated yet: `size` in bytes, and when its request arrived (`time.monotonic`)."""

    given: dict[str, Any]
    size: int
    arrived_s: float
    ignored: Ignored = field(default_factory=dict)

    def deadline(self, headers: Mapping[str, str], asked_s: float | None) -> Deadline:
        """The deadline, by the shorter of the body's timeout (`asked_s`) and the header's. Raises InvalidRequest."""
        timeout_s = _timeout_from(headers, asked_s)
        # From when the headers were complete.
        return NO_DEADLINE if timeout_s is None else Deadline(self.arrived_s + timeout_s)


async def read_call(call: Call, models: ServedModels, max_bytes: int) -> ReadBody:
    """Read a call's body as JSON. Raises PresiftError; an unknown model before an invalid parameter."""
    arrived_s = time.monotonic()
    raw = await read_body(call.headers, call.receive, max_bytes, call.hold)
    given = await in_thread_if_large(len(raw), lambda: parse_json_object(raw))
    if isinstance(model := given.get("model"), str):
        models.find(model)
    return ReadBody(given, len(raw), arrived_s)


def _timeout_from(headers: Mapping[str, str], asked_s: float | None) -> float | None:
    header = headers.get(_TIMEOUT_HEADER)
    timeouts = [] if asked_s is None else [asked_s]
    if header is not None:
        try:
            timeouts.append(float(header))
        except ValueError:
            raise InvalidRequest(_TIMEOUT_HEADER, brief(header), "a number of seconds") from None
        if not 0.0 < timeouts[-1] <= MAX_TIMEOUT_S:
            raise InvalidRequest(_TIMEOUT_HEADER, brief(header), f"0 < seconds <= {MAX_TIMEOUT_S}")
    return min(timeouts, default=None)
