"""Plain SGLang: its own HTTP server, its radix cache, and none of presift's plugin. The baseline of production."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryFile
from typing import Any

import httpx
import stock_sglang
from peers.answering import PeerAnswer, failed, peak_mib, refused
from peers.passages import plain

from presift.models.folder import ModelFolder
from presift.target.sglang.arguments import SglangOptions

# The time that one answer may take.
_ANSWER_S = 3600.0


class PlainSglang:
    """A server at `address` (a URL). `pid` is its process if this one started it."""

    def __init__(self, address: str, pid: int | None = None) -> None:
        self._http = httpx.AsyncClient(base_url=address, timeout=_ANSWER_S)
        self._pid = pid

    @property
    def peak_mib(self) -> float | None:
        return None if self._pid is None else peak_mib(self._pid)

    async def answer(
        self, messages: list[dict[str, Any]], max_kv_tokens: int | None, max_new_tokens: int
    ) -> PeerAnswer:
        """Answer with all KV; `max_kv_tokens` must be None."""
        assert max_kv_tokens is None
        body = {
            "model": "default",
            "messages": [plain(message) for message in messages],
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_output_ids_in_sglext": True,
        }
        started = time.perf_counter()
        first: float | None = None
        found = _Stream()
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    text = (await response.aread()).decode(errors="replace")
                    raise (refused if response.is_client_error else failed)(
                        f"SGLang answered {response.status_code}: {text}"
                    )
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and found.add(line.removeprefix("data: ")) and first is None:
                        first = time.perf_counter()
        except httpx.HTTPError as error:
            raise ValueError(f"SGLang's server ended, or cannot be reached: {error!r}") from error
        ended = time.perf_counter()
        return found.answer(((first or ended) - started) * 1e3, (ended - started) * 1e3)

    async def close(self) -> None:
        await self._http.aclose()


class _Stream:
    """What the events of a stream add up to."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._finish_reason = ""
        self._end: object = None
        self._ids: list[int] | None = None
        self._usage: dict[str, Any] | None = None

    def add(self, event: str) -> bool:
        """Whether the event has a part of the answer. Raises PresiftError if it is an error."""
        if event == "[DONE]":
            return False
        chunk = json.loads(event)
        if "error" in chunk:
            raise failed(f"SGLang failed: {chunk['error']}")
        self._usage = chunk.get("usage") or self._usage
        if chunk.get("sglext"):
            (self._ids,) = chunk["sglext"]["output_ids"]
        said = False
        for choice in chunk["choices"]:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            self._end = choice.get("matched_stop", self._end)
            delta = choice["delta"]
            self._texts.append(delta.get("content") or "")
            said = said or bool(delta.get("content") or delta.get("reasoning_content"))
        return said

    def answer(self, ttft_ms: float, total_ms: float) -> PeerAnswer:
        """Raises PresiftError for a stream that ended early, ValueError for a server without token ids."""
        if self._usage is None:
            raise failed("SGLang's stream ended before the answer did")
        if self._ids is None:
            raise ValueError(
                "the server at --sglang-address gives no output_ids (sglext); it must be SGLang 0.5.21 or later"
            )
        ids = self._ids[:-1] if self._ids and self._ids[-1] == self._end else self._ids
        prompt_tokens = self._usage["prompt_tokens"]
        return PeerAnswer(
            text="".join(self._texts),
            token_ids=tuple(ids),
            prompt_tokens=prompt_tokens,
            kv_tokens=prompt_tokens,
            completion_tokens=self._usage["completion_tokens"],
            finish_reason=self._finish_reason,
            ttft_ms=ttft_ms,
            total_ms=total_ms,
        )


@asynccontextmanager
async def started(folder: ModelFolder) -> AsyncIterator[PlainSglang]:
    """A server on this machine's processor, with the defaults of presift's target. It ends with the block.

    Raises ValueError if it does not start.
    """
    with TemporaryFile() as log:
        url, process = stock_sglang.launch(SglangOptions(folder, kv_dropping=False), log)
        try:
            await asyncio.to_thread(stock_sglang.wait_until_healthy, url, process, log)
            async with asked(url, process.pid) as peer:
                yield peer
        finally:
            await asyncio.to_thread(stock_sglang.end, process)


@asynccontextmanager
async def asked(address: str, pid: int | None = None) -> AsyncIterator[PlainSglang]:
    """The server at `address`, once it has answered a first prompt, which is not measured. Raises ValueError if no
    healthy server is there."""
    if not await asyncio.to_thread(stock_sglang.is_healthy, address):
        raise ValueError(f"sglang-address is {address}, where no healthy SGLang answers")
    peer = PlainSglang(address, pid)
    try:
        await peer.answer([{"role": "user", "content": "Hello."}], None, 2)
        yield peer
    finally:
        await peer.close()
