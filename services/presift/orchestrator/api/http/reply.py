"""The response of one HTTP call: one JSON object, or server-sent events; an error as long as one can still be sent.

Not sse-starlette: it sends the status before the first event, so an error before the first token could not have its
own status; its pings do not depend on silence; and it patches uvicorn's Server to cancel streams when a drain begins.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from starlette.types import Send

from presift.core.errors import Overloaded, PresiftError
from presift.orchestrator.admission.answer_bytes import WaitingAnswer
from presift.orchestrator.api.http.errors import error_response
from presift.orchestrator.api.http.parameter_names import ParameterNames
from presift.orchestrator.api.http.wire_format import COMPLETIONS, WireFormat

# A whole response is handed to the connection in pieces of _PIECE_BYTES, as its client reads. Behind TLS asyncio would
# take it at once, and tell nothing about what was read.
_PIECE_BYTES = 65_536
_EVENT_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def json_bytes(body: Mapping[str, Any]) -> bytes:
    """A body as bytes. Encode a large one in another thread."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def no_buffers() -> None:
    """Under a server other than presift's, which does not tell what its client has read."""


def do_nothing() -> None:
    """Under such a server, which closes connections without a complete response itself."""


class Reply:
    """`is_ending`: the last bytes are being sent; `is_complete`: they were sent. `status` is 0 before anything was
    sent, `error` the code of the error. `names` are those of the request, once its body was read; `format` is the
    API's. `waiting` counts what a response is made of, and a whole one until its client has read it. It calls `drop` if
    it must make room. `abort` closes the connection at once."""

    def __init__(
        self,
        send: Send,
        keepalive_s: float | None = None,
        drained: Callable[[], Awaitable[None]] = no_buffers,
        abort: Callable[[], None] = do_nothing,
        wire_format: WireFormat = COMPLETIONS,
    ) -> None:
        """After `keepalive_s` without output in a stream a comment is sent: proxies close silent connections. Never if
        it is None, because some clients cannot read comments. `drained` waits until the client has read all but what
        buffers of fixed sizes hold."""
        self._send = send
        self._keepalive_s = keepalive_s
        self._drained = drained
        self.abort = abort
        self.waiting: WaitingAnswer | None = None
        self._held = 0
        self._rest = memoryview(b"")
        self._dropped: Overloaded | None = None
        self._headers: dict[str, str] = {}
        self.names: ParameterNames | None = None
        self.format = wire_format
        self.status = 0
        self.error = ""
        self.is_ending = False
        self.is_complete = False
        self._has_begun = False
        self._is_stream = False
        self._last_s = 0.0
        self._writing = asyncio.Lock()

    def hold(self, size: int) -> None:
        """Count `size` bytes more of what a response is made of. A whole one counts by itself from `send_bytes` on.

        Raises Overloaded if there is no room for it beside what others hold.
        """
        if self.waiting is not None:
            self._held += size
            self.waiting.add(size)
            self._check_not_dropped()

    async def send_json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """The whole response."""
        await self.send_bytes(status, json_bytes(body), headers)

    async def send_bytes(self, status: int, raw: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The whole response, already encoded as JSON; of a long one the beginning, and `finish` sends the rest.

        Raises Overloaded, before anything is sent, if there is no room for it beside what others have not read.
        """
        content = {"content-type": "application/json", "content-length": str(len(raw))}
        async with self._writing:
            if self.waiting is not None:
                self.waiting.add(len(raw) - self._held)  # instead of what it was made of
                self._held = len(raw)
                self._check_not_dropped()
            with self._sending():
                await self._start(status, content | dict(headers or {}))
                self._rest = memoryview(raw)
                await self._write_piece(_PIECE_BYTES if self.waiting is not None else len(raw))

    async def finish(self) -> None:
        """Send the rest of a whole response as its client reads, and wait until it has read all but what buffers of
        fixed sizes hold. Raises Overloaded if a whole response was dropped."""
        with self._sending():
            while self._rest:
                await self._drained()
                self._check_not_dropped()
                if self.waiting is not None:
                    self.waiting.record_read()
                async with self._writing:
                    await self._write_piece(_PIECE_BYTES)
            await self._drained()
        if not self._is_stream:  # a complete one is not to fail
            self._check_not_dropped()

    def drop(self, error: Overloaded) -> None:
        """Make room for other answers: the connection closes if a whole response is not read, or more than a piece that
        a stream is made of. Otherwise the pipeline of a stream fails, and its client gets the error."""
        self._dropped = error
        is_blocked = not self._is_stream or (self._writing.locked() and self._held > _PIECE_BYTES)
        if self._has_begun and is_blocked:
            self.abort()

    @asynccontextmanager
    async def event_stream(self) -> AsyncIterator[None]:
        """Allows `send_event` within the block. Nothing is sent before the first event (or a comment), so that an
        earlier error has its own status."""
        self._is_stream, self._headers = True, dict(_EVENT_HEADERS)
        self._last_s = asyncio.get_running_loop().time()
        if self._keepalive_s is None:
            yield
            return
        keep_alive = asyncio.create_task(self._keep_alive(self._keepalive_s), name="keep a stream alive")
        try:
            yield
        finally:
            keep_alive.cancel()

    def add_header(self, name: str, value: str) -> bool:
        """Add a header to the stream. False if its headers were sent already, with a comment."""
        if not self._has_begun:
            self._headers[name] = value
        return not self._has_begun

    async def send_event(self, value: Mapping[str, Any]) -> None:
        await self.send_lines(self.event_lines(value))

    def event_lines(self, value: Mapping[str, Any]) -> bytes:
        """An event as it is sent. Make those of a large one in another thread."""
        name = self.format.event_name(value)
        head = f"event: {name}\n" if name else ""
        lines = f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
        return lines.encode("utf-8", "replace")

    async def send_lines(self, lines: bytes, *, ends: bool = False) -> None:
        """Send events, and wait until the client has read all but what buffers of fixed sizes hold."""
        async with self._writing:
            self._last_s = asyncio.get_running_loop().time()
            with self._sending():
                if not self.status:
                    await self._start(200, self._headers)
                await self._write(lines, ends=ends)
                if not ends:
                    await self._drained()

    async def send_done(self) -> None:
        """The end of a stream."""
        await self.send_lines(b"data: [DONE]\n\n" if self.format.has_done else b"", ends=True)

    async def send_error(self, error: PresiftError) -> None:
        """An error response or, once a stream has begun, the last event. A complete response stays as it is."""
        self.waiting = None  # an error is short, and is sent in any case
        response = error_response(error, self.names)
        self.error = str(response.body["error"]["code"])
        if not self.status:
            await self.send_json(response.status, self.format.error_body(response), response.headers)
        elif not self.is_complete and self._is_stream:
            await self.send_lines(b"".join(map(self.event_lines, self.format.error_events(response))), ends=True)

    async def _keep_alive(self, silence_s: float) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.01, self._last_s + silence_s - clock()))
            if clock() - self._last_s >= silence_s:
                await self.send_lines(b": waiting\n\n")

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._has_begun = True
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        self.status = status

    async def _write_piece(self, size: int) -> None:
        piece, self._rest = self._rest[:size], self._rest[size:]
        if not self._rest:
            self._rest = memoryview(b"")  # an empty slice would keep the whole response
        await self._write(bytes(piece), ends=not self._rest)

    def _sending(self) -> AbstractContextManager[None]:
        """Within the block the client has something to read."""
        return nullcontext() if self.waiting is None else self.waiting.sending()

    def _check_not_dropped(self) -> None:
        if self._dropped is not None:
            raise self._dropped

    async def _write(self, raw: bytes, *, ends: bool) -> None:
        self.is_ending = ends
        await self._send({"type": "http.response.body", "body": raw, "more_body": not ends})
        self.is_complete = ends
