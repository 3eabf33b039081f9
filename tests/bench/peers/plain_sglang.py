"""Plain SGLang: its own HTTP server, its radix cache, and none of presift's plugin. The baseline of production."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from tempfile import TemporaryFile
from typing import IO, Any

import httpx
from peers.answering import PeerAnswer, end, failed, peak_mib, refused
from peers.passages import plain

from presift.cache import die_with_parent
from presift.models.folder import ModelFolder
from presift.target import sglang_plugin
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment

_START_S = 600.0
_ERROR = re.compile(r"^[\w.]*(Error|Exception)\b")
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "presift.target.stock_server", *flags(folder), "--port", str(port)]
    with TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, die_with_parent.__file__, str(os.getpid()), *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment(folder), start_new_session=True,
        )  # fmt: skip
        try:
            async with asked(f"http://127.0.0.1:{port}", process, log) as peer:
                yield peer
        finally:
            end(process.pid)
            await process.wait()


@asynccontextmanager
async def asked(
    address: str, process: asyncio.subprocess.Process | None = None, log: IO[bytes] | None = None
) -> AsyncIterator[PlainSglang]:
    """The server at `address`, once it is healthy and has answered a first prompt, which is not measured."""
    peer = PlainSglang(address, None if process is None else process.pid)
    try:
        await _wait_until_healthy(address, process, log)
        await peer.answer([{"role": "user", "content": "Hello."}], None, 2)
        yield peer
    finally:
        await peer.close()


def flags(folder: ModelFolder) -> list[str]:
    """The arguments that presift's target gives SGLang, as flags of its server."""
    found = []
    for name, value in server_arguments(_options(folder)).items():
        if value is not False:
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


def environment(folder: ModelFolder) -> Mapping[str, str]:
    """That of presift's target, with the plugin switched off."""
    found = dict(os.environ)
    set_environment(_options(folder), found)
    return found | {sglang_plugin.SWITCH: "0"}


def _options(folder: ModelFolder) -> SglangOptions:
    return SglangOptions(folder, kv_dropping=False)


async def _wait_until_healthy(address: str, process: asyncio.subprocess.Process | None, log: IO[bytes] | None) -> None:
    deadline = time.monotonic() + _START_S
    async with httpx.AsyncClient(timeout=5.0) as http:
        while time.monotonic() < deadline:
            if process is not None and process.returncode is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(f"{address}/health")).status_code == httpx.codes.OK:
                    return
            if process is None:
                raise ValueError(f"sglang-address is {address}, where no healthy SGLang answers")
            await asyncio.sleep(0.5)
    assert log is not None and process is not None
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().split("\n")
    # The process that failed says why; the last lines are those of the processes that end because of it.
    said = [line for line in lines if _ERROR.search(line)] or lines
    what = "ended while it started" if process.returncode is not None else f"did not start within {_START_S:.0f} s"
    raise ValueError(f"plain SGLang {what}: {said[-1]}")
