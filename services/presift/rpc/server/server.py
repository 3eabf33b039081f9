"""A gRPC server as every service runs it: health, reflection, error translation, tracing, and a drain on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters

from presift.core.errors import PresiftError
from presift.rpc.limits import HARDENED
from presift.rpc.security.binding import check_binding, is_loopback
from presift.rpc.security.certificates import TlsFiles, server_credentials
from presift.rpc.server.active_calls import ActiveCalls
from presift.rpc.server.error_interceptor import ErrorInterceptor
from presift.telemetry.gauges import gauge, observed

# Seconds for the calls that are cut at the end of a drain to say so.
_CUT_S = 1.0

# Serves from the start, whatever can be done for callers: who is not ready need not be restarted.
LIVENESS = "liveness"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`listen` is HOST:PORT (port 0: any free one); `drain_s` bounds how long running calls may take to finish,
    `max_calls` how many there are, whatever they do.

    `tls` None is plain; with a `ca` in it callers must have a certificate of that authority. `insecure` lets the server
    listen beyond this machine although nobody has to say who calls.
    """

    listen: str
    max_message_bytes: int = 64 * 2**20
    drain_s: float = 30.0
    max_calls: int = 4096
    tls: TlsFiles | None = None
    reflection: bool = True
    insecure: bool = False


class Listener(Protocol):
    """Another way into the same service; its calls are counted among the server's (`ActiveCalls.take`)."""

    async def stop(self, within_s: float) -> None:
        """Take no call from now on, and return when none is left, after `within_s` at the latest."""
        ...


class GrpcServer:
    """Add servicers to `grpc`, then `start`. Nothing is SERVING until `set_serving(True)`, but `liveness` is, as long
    as the process answers.
    """

    def __init__(
        self,
        options: ServerOptions,
        service_names: Sequence[str],
        health_names: Sequence[str] = (),
        guards: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """`health_names` are further names under which grpc.health.v1 answers: parts of a service. `guards` refuse
        callers, by raising presift's errors; where there is one, callers are known.
        """
        self.options = options
        self._callers_known = bool(guards) or (options.tls is not None and options.tls.ca is not None)
        self.calls = ActiveCalls(options.max_calls)
        self.grpc = grpc.aio.server(
            interceptors=[_traced(), ErrorInterceptor(self.calls), *guards, self.calls],
            options=[
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", options.max_message_bytes),
                # Two servers must never share a port unnoticed.
                ("grpc.so_reuseport", 0),
                # Less than our own clients' keepalive time: a caller that pings more often is sent away.
                ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
                # A caller that is gone without a word, or frozen, must not hold its place for ever.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                *HARDENED,
            ],
        )
        self._health = health.aio.HealthServicer()
        self._names = ("", *service_names, *health_names)
        self.doors: list[Listener] = []
        self._stop = asyncio.Event()
        self._failed = self.is_serving = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if options.reflection:
            named = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(named, self.grpc)

    async def start(self) -> int:
        """Bind and listen, NOT_SERVING. Returns the port.

        Raises PresiftError if the address cannot be bound, or may not be without knowing who calls, or for certificates
        that cannot be used.
        """
        options = self.options
        check_binding(options.listen, self._callers_known, options.insecure)
        credentials = None if options.tls is None else server_credentials(options.tls.watched())
        if credentials is None and not is_loopback(options.listen):
            log.warning("listening on %s without TLS: what is said can be read on the way", options.listen)
        await self.set_serving(False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        try:
            if credentials is None:
                port = self.grpc.add_insecure_port(options.listen)
            else:
                port = self.grpc.add_secure_port(options.listen, credentials)
        except RuntimeError as error:
            raise PresiftError(f"cannot listen on {options.listen}: the address is in use or not ours") from error
        await self.grpc.start()
        return port

    async def set_serving(self, serving: bool, except_for: Collection[str] = ()) -> None:
        """Flip grpc.health.v1 for the server as a whole and for each of its names, except that some do not serve."""
        self.is_serving = serving and "" not in except_for
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
        with observed(
            gauge("presift.serving", lambda: self.is_serving),
            gauge("presift.calls.running", lambda: self.calls.running),
        ):
            await self._stop.wait()
            await self.drain()
        return not self._failed

    async def drain(self) -> None:
        """Health flips, new calls are refused, running ones get `drain_s` to finish; then they are cut."""
        self.is_serving = False
        await self._health.enter_graceful_shutdown()
        self.calls.close()
        # gRPC itself ends what does not hear of our cut: a call whose caller does not read. So do other doors.
        within_s = self.options.drain_s + _CUT_S
        stopping = asyncio.gather(self.grpc.stop(within_s), *(door.stop(within_s) for door in self.doors))
        await self.calls.ended(self.options.drain_s)
        while not stopping.done():
            self.calls.cut()
            await asyncio.wait((stopping,), timeout=0.1)
        await stopping


def _traced() -> grpc.aio.ServerInterceptor:
    # Probes ask every few seconds: nobody looks for their traces, and they would bury the others.
    interceptor: grpc.aio.ServerInterceptor = aio_server_interceptor(filter_=filters.negate(filters.health_check()))
    return interceptor
