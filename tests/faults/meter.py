"""What a process holds, and whether it holds more than before: memory, files, tasks, KV slots."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

import grpc
import psutil

from presift.v1 import target_pb2, target_pb2_grpc

from .stack import Stack

RSS_GROWTH_LIMIT = 0.05
# What comes and goes by itself: a connection of the cache's pool, a timer.
MORE_FILES, MORE_TASKS = 6, 3


@dataclass(frozen=True, slots=True)
class Holding:
    """What one idle process holds; `tasks` and `free_kv_tokens` are None where they do not apply."""

    rss_bytes: int
    files: int
    threads: int
    tasks: int | None = None
    free_kv_tokens: int | None = None


def complaints(name: str, before: Holding, after: Holding) -> list[str]:
    """What `after` holds more than it may, in words. Both idle, `before` warm."""
    found = []
    growth = after.rss_bytes / before.rss_bytes - 1
    if growth >= RSS_GROWTH_LIMIT:
        found.append(f"{name}: memory grew by {growth:.1%} from {before.rss_bytes >> 20} MiB")
    if after.files > before.files + MORE_FILES:
        found.append(f"{name}: {after.files} open files, {before.files} before")
    if before.tasks is not None and after.tasks is not None and after.tasks > before.tasks + MORE_TASKS:
        found.append(f"{name}: {after.tasks} asyncio tasks, {before.tasks} before")
    if after.free_kv_tokens != before.free_kv_tokens:
        found.append(f"{name}: {after.free_kv_tokens} KV slots free, {before.free_kv_tokens} before")
    return found


async def weigh(stack: Stack) -> dict[str, Holding]:
    """What every process of an idle stack holds."""
    return {name: await _holding(stack, name) for name in stack.proxies}


async def _holding(stack: Stack, name: str) -> Holding:
    process = psutil.Process(stack.pid(name))
    tasks = None if name == "cache" else await tasks_of(stack, name)
    free = await free_kv_tokens(stack, name) if name.startswith("target") else None
    return Holding(process.memory_info().rss, process.num_fds(), process.num_threads(), tasks, free)


async def tasks_of(stack: Stack, name: str) -> int:
    """How many asyncio tasks the process has; a service that runs by `watched`."""
    return int((await _told(stack, name))[0])


async def clock_of(stack: Stack, name: str) -> int:
    """Its wall clock, in seconds since 1970; of a service that runs by `watched`."""
    return int((await _told(stack, name))[3])


async def _told(stack: Stack, name: str) -> list[str]:
    """What `watched` says of the process now."""
    path = stack.tasks_file(name)
    before = path.read_text() if path.exists() else ""
    stack.signal(name, signal.SIGUSR1)
    async with asyncio.timeout(10):
        while not path.exists() or path.read_text() == before:
            await asyncio.sleep(0.02)
    return path.read_text().split()


async def free_kv_tokens(stack: Stack, name: str) -> int:
    """What a target says of its KV slots, up to a second ago."""
    async with grpc.aio.insecure_channel(stack.proxies[name].upstream) as channel:
        reply = await target_pb2_grpc.TargetServiceStub(channel).GetInfo(target_pb2.TargetServiceGetInfoRequest())
    return reply.load.free_kv_tokens
