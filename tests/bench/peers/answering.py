"""Peers that answer prompts themselves, in an engine of their own: their interface, and their memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import psutil

from presift_client import InternalError, InvalidRequest
from presift_client.errors import Details


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """A greedy answer. Counts in tokens, times in milliseconds from the request on. `token_ids` lack the token that
    ended the answer, `completion_tokens` count it, as presift's do. `kv_tokens` of the prompt are held for each head,
    in the mean."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    kv_tokens: int
    completion_tokens: int
    finish_reason: str
    ttft_ms: float
    total_ms: float


class AnsweringPeer(Protocol):
    """An engine. `peak_mib` is the most memory that its processes took, None if that is unknown."""

    peak_mib: float | None

    async def answer(
        self, messages: list[dict[str, Any]], max_kv_tokens: int | None, max_new_tokens: int
    ) -> PeerAnswer:
        """Raises PresiftError for a request that failed, ValueError if the engine ended."""


def refused(message: str) -> InvalidRequest:
    """The error of a prompt that the peer cannot answer; another run would get it again."""
    return InvalidRequest(message, grpc.StatusCode.INVALID_ARGUMENT, Details())


def failed(message: str) -> InternalError:
    """The error of one call; another run asks again."""
    return InternalError(message, grpc.StatusCode.INTERNAL, Details())


def peak_mib(pid: int) -> float:
    """The peaks of the resident memory of a process and its descendants, added up, in MiB. Linux only."""
    found = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return found / 1024


def end(pid: int) -> None:
    """Kill a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(pid).children(recursive=True)
        for process in (psutil.Process(pid), *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
