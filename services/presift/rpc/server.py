"""A gRPC server as every service runs it: health, reflection, error translation, tracing, and a drain on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import aio_server_interceptor

from presift.core.errors import PresiftError
from presift.rpc.interceptor import ErrorInterceptor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`listen` is HOST:PORT (port 0: any free one); `drain_s` bounds how long running calls may take to finish."""

    listen: str
    max_message_bytes: int = 64 * 2**20
    drain_s: float = 30.0


class GrpcServer:
    """Add servicers to `grpc`, then `start`; nothing is SERVING until `set_serving(True)`."""

    def __init__(self, options: ServerOptions, service_names: Sequence[str], health_names: Sequence[str] = ()) -> None:
        """`health_names` are further names under which grpc.health.v1 answers: parts of a service."""
        self.options = options
        self.grpc = grpc.aio.server(
            interceptors=[aio_server_interceptor(), ErrorInterceptor()],
            options=[
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", options.max_message_bytes),
                # Two servers must never share a port unnoticed.
                ("grpc.so_reuseport", 0),
                # Less than our own clients' keepalive time: a caller that pings more often is sent away.
                ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
            ],
        )
        self._health = health.aio.HealthServicer()
        self._names = ("", *service_names, *health_names)
        self._stop = asyncio.Event()
        self._failed = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection((*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc)

    async def start(self) -> int:
        """Bind and listen, NOT_SERVING. Returns the port. Raises PresiftError if the address cannot be bound."""
        await self.set_serving(False)
        try:
            port = self.grpc.add_insecure_port(self.options.listen)
        except RuntimeError as error:
            raise PresiftError(f"cannot listen on {self.options.listen}: the address is in use or not ours") from error
        await self.grpc.start()
        return port

    async def set_serving(self, serving: bool, except_for: Collection[str] = ()) -> None:
        """Flip grpc.health.v1 for the server as a whole and for each of its names, except that some do not serve."""
        for name in self._names:
            serves = serving and name not in except_for
            status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(name, status)

    def request_stop(self, *, failed: bool = False) -> None:
        """Ask `run_until_stopped` to drain; `failed` makes it return False."""
        self._failed = self._failed or failed
        self._stop.set()

    async def run_until_stopped(self) -> bool:
        """Wait for SIGTERM, SIGINT or `request_stop`, then drain. True unless something failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await self._stop.wait()
        await self.drain()
        return not self._failed

    async def drain(self) -> None:
        """Health flips, new calls are refused, running ones get `drain_s` to finish."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(self.options.drain_s)
