"""Keeps a replica's connection in use, so that gRPC need not ping it while its server is alive.

gRPC pings a connection on which it has read nothing for 5 s (`rpc/client/channel.py`). By default servers and proxies
made with gRPC allow one ping in 5 minutes while they send nothing, and close a connection after the fourth
(too_many_pings): a call that was silent for 20 s failed. presift's own servers allow more, but a mesh may stand before
them. The answer to a health check is data, so a ping is sent only where it is missing.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Less than the keepalive time of channels.
EVERY_S = 4.0


async def keep_in_use(channel: grpc.aio.Channel) -> None:
    """Runs until cancelled. What the checks say does not matter, not even that the server has none."""
    check = health_pb2_grpc.HealthStub(channel).Check
    while True:
        await asyncio.sleep(EVERY_S)
        with suppress(grpc.aio.AioRpcError):
            await check(health_pb2.HealthCheckRequest(), timeout=EVERY_S)
