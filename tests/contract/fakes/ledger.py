"""What a cancellation ledger is kept with: calls that end in four ways, and the tasks that they leave behind."""

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

import grpc

from presift.core.errors import ShuttingDown
from presift.rpc.status import error_of

# As long as a slow machine needs to bring a call where it is to end.
DEADLINE_S = 2.0

# A client of its own process: `address method kind`, the message in hexadecimal on its standard input.
_CLIENT = """
import sys, grpc
address, method, kind = sys.argv[1:]
message = bytes.fromhex(sys.stdin.readline())
with grpc.insecure_channel(address) as channel:
    if kind == "stream":
        list(channel.unary_stream(method)(message))
    else:
        channel.unary_unary(method)(message)
"""


@dataclass(frozen=True)
class Call:
    """An RPC to be made: its full name, whether it streams, its message."""

    method: str
    streams: bool
    message: Any

    def begin(self, channel, timeout=None):
        """The call, and a task that reads it to its end and returns its failure."""
        kind = channel.unary_stream if self.streams else channel.unary_unary
        call = kind(self.method)(self.message.SerializeToString(), timeout=timeout)
        return call, asyncio.create_task(self._failure(call))

    async def _failure(self, call):
        try:
            if self.streams:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as failure:
            return failure
        except asyncio.CancelledError:
            if call.cancelled():  # the call, not this task
                return call
            raise
        raise AssertionError("answered, but must be ended")


async def cancelled(call, stack, reached):
    """The caller cancels."""
    begun, ending = call.begin(stack.channel)
    await stack.settle(reached)
    begun.cancel()
    await ending


async def late(call, stack, reached):
    """The caller's deadline passes."""
    _, ending = call.begin(stack.channel, timeout=DEADLINE_S)
    await stack.settle(reached)
    failure = await ending
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED, failure


async def killed(call, stack, reached):
    """The caller's process is killed."""
    arguments = (stack.address, call.method, "stream" if call.streams else "one")
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", _CLIENT, *arguments, stdin=pipe)
    client.stdin.write(call.message.SerializeToString().hex().encode() + b"\n")
    await stack.settle(reached)
    client.kill()
    await client.communicate()


async def shut_down(call, stack, reached):
    """The service is shut down, and the time that running calls get is over."""
    _, ending = call.begin(stack.channel)
    await stack.settle(reached)
    await stack.server.drain()
    failure = await ending
    assert failure.code() is grpc.StatusCode.UNAVAILABLE and isinstance(error_of(failure), ShuttingDown), failure


ENDINGS = {"cancel": cancelled, "deadline": late, "killed": killed, "shutdown": shut_down}


def tasks():
    """Those that are not done, without the one that asks."""
    return {task for task in asyncio.all_tasks() if not task.done()} - {asyncio.current_task()}
