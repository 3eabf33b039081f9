"""What goes back over one HTTP call: one JSON object, or server-sent events; a refusal as long as that can be told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Send

from presift.core.errors import PresiftError
from presift.orchestrator.api.http.statuses import refusal_of

# Seconds of silence in a stream after which a comment is sent: proxies cut what says nothing.
SILENCE_S = 15.0
_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


def as_json(body: Mapping[str, Any]) -> bytes:
    """Bytes of a body. Of a large one they are to be made in another thread."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Reply:
    """`is_told`: nothing is left to be said; `is_ending`: the last of it is on its way. `status` is 0 before anything
    was sent, `error` the code of what went wrong."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: dict[str, str] = {}
        self.status = 0
        self.error = ""
        self.is_ending = False
        self.is_told = False
        self._has_begun = False
        self._is_stream = False
        self._last_s = 0.0
        self._writing = asyncio.Lock()

    async def json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """The whole reply."""
        await self.whole(status, as_json(body), headers)

    async def whole(self, status: int, raw: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The same, of bytes."""
        known = {"content-type": "application/json", "content-length": str(len(raw))}
        async with self._writing:
            await self._start(status, known | dict(headers or {}))
            await self._write(raw, ends=True)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[None]:
        """Inside, `event` may be sent. Nothing goes out before the first one (or a long silence), so that what goes
        wrong before it has its own status."""
        self._is_stream, self._headers = True, dict(_EVENTS)
        self._last_s = asyncio.get_running_loop().time()
        beating = asyncio.create_task(self._beat(), name="keep a stream alive")
        try:
            yield
        finally:
            beating.cancel()

    def has_header(self, name: str, value: str) -> bool:
        """Let the stream begin with this header, too. False where it has begun: a long silence was broken."""
        if not self._has_begun:
            self._headers[name] = value
        return not self._has_begun

    async def event(self, value: Mapping[str, Any]) -> None:
        await self._line(f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n")

    async def end(self) -> None:
        """The last event of a stream."""
        await self._line("data: [DONE]\n\n", ends=True)

    async def refuse(self, error: PresiftError) -> None:
        """By its status or, once something was sent, as the last event. A reply that is told stays as it is."""
        refusal = refusal_of(error)
        self.error = str(refusal.body["error"]["code"])
        if not self.status:
            await self.json(refusal.status, refusal.body, refusal.headers)
        elif not self.is_told and self._is_stream:
            await self._line(f"data: {json.dumps(refusal.body)}\n\n", ends=True)

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.01, self._last_s + SILENCE_S - clock()))
            if clock() - self._last_s >= SILENCE_S:
                await self._line(": waiting\n\n")

    async def _line(self, line: str, *, ends: bool = False) -> None:
        async with self._writing:
            self._last_s = asyncio.get_running_loop().time()
            if not self.status:
                await self._start(200, self._headers)
            await self._write(line.encode("utf-8", "replace"), ends=ends)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._has_begun = True
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        self.status = status

    async def _write(self, raw: bytes, *, ends: bool) -> None:
        self.is_ending = ends
        await self._send({"type": "http.response.body", "body": raw, "more_body": not ends})
        self.is_told = ends
