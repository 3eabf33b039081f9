"""The gRPC server of every service: health, reflection, error translation, tracing, and a drain on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Collection, Sequence
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
from presift.rpc.server.active_calls import ActiveCalls, share_of
from presift.rpc.server.error_interceptor import ErrorInterceptor
from presift.rpc.server.health import HealthServicer
from presift.rpc.server.memory_guard import MemoryGuard
from presift.rpc.server.request_bytes import RequestBytes
from presift.rpc.server.request_reader import RequestReader
from presift.rpc.server.stream_writer import StreamWriter
from presift.telemetry.gauges import Gauge, gauge, observed

# Seconds for cancelled calls to send their error at the end of a drain.
_CANCEL_S = 1.0
# Connections that were accepted before the sockets closed have so many seconds to send their request.
_LATE_REQUESTS_S = 0.5

# SERVING from the start: a process that is not ready need not be restarted.
LIVENESS = "liveness"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`listen` is HOST:PORT (port 0: any free port). `drain_s` is the time that running calls get to finish.

    `lame_duck_s` is the time before that in which new calls are answered. `max_connection_age_s` is the age at which a
    connection is drained, None for never; its running calls then get `max_connection_age_grace_s`, None for all they
    need. `max_calls` limits concurrent calls of all methods, `max_received_bytes` the sum of their requests. Above
    `max_memory_bytes` of the process, incomplete requests end (`MemoryGuard`). `tls` None is plain text; with a `ca`,
    callers need a certificate of that authority. `insecure` lets the server listen beyond this machine without
    authentication.
    """

    listen: str
    max_message_bytes: int = 34 * 2**20
    drain_s: float = 30.0
    max_calls: int = 4096
    tls: TlsFiles | None = None
    reflection: bool = True
    insecure: bool = False
    lame_duck_s: float = 0.0
    max_connection_age_s: float | None = None
    max_connection_age_grace_s: float | None = None
    max_received_bytes: int = 512 * 2**20
    max_memory_bytes: int | None = None

    @property
    def request_bytes(self) -> RequestBytes:
        """The count of a new server; one request of the greatest size is always possible."""
        limit, one = self.max_received_bytes, self.max_message_bytes
        return RequestBytes(max(limit, one), max(limit // 4, one))


class Listener(Protocol):
    """Another listener of the same service, such as HTTP. Its calls count as the server's (`ActiveCalls.enter`)."""

    def announce_stop(self) -> None:
        """Answer new calls, and tell their callers to use another connection for the next one."""
        ...

    async def stop_listening(self) -> None:
        """Accept no more connections. Calls that arrive before that are answered."""
        ...

    async def stop(self, within_s: float) -> None:
        """Refuse new calls, and return when no call is left, after `within_s` seconds at the latest."""
        ...


class GrpcServer:
    """Add servicers to `grpc`, then call `start`. Until `set_serving(True)` only `liveness` is SERVING."""

    def __init__(
        self,
        options: ServerOptions,
        service_names: Sequence[str],
        health_names: Sequence[str] = (),
        auth_interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        tenant_of_call: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`health_names` are further names in grpc.health.v1, for parts of a service. `auth_interceptors` refuse calls
        by raising presift's errors. `tenant_of_call`: the proven tenant of the current task, if any.
        """
        self.options = options
        self._has_auth = bool(auth_interceptors) or (options.tls is not None and options.tls.ca is not None)
        self.calls = ActiveCalls(options.max_calls, tenant_of_call, options.request_bytes)
        self._guard = MemoryGuard(options.max_memory_bytes)
        self.grpc = grpc.aio.server(
            interceptors=[
                RequestReader(self.calls, self._guard),
                StreamWriter(self.calls),
                _traced(),
                ErrorInterceptor(self.calls),
                *auth_interceptors,
                self.calls,
            ],
            options=[
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", options.max_message_bytes),
                ("grpc.max_concurrent_streams", share_of(options.max_calls)),
                # Two servers must not share a port unnoticed.
                ("grpc.so_reuseport", 0),
                # gRPC disconnects a client that pings more often, by default than every 5 minutes, and one that pings
                # without a call. Most libraries let clients ping every 10 s; presift's do every 5 s.
                ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # A caller that is frozen, or gone without closing its connection, must not hold a slot for ever.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                *_connection_age(options),
                *HARDENED,
            ],
        )
        self._health = HealthServicer()
        self._names = ("", *service_names, *health_names)
        self.listeners: list[Listener] = []
        self._stop = asyncio.Event()
        self._failed = self.is_serving = self._is_draining = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if options.reflection:
            named = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(named, self.grpc)

    async def start(self) -> int:
        """Bind and listen, NOT_SERVING. Returns the port.

        Raises PresiftError if the address cannot be bound, needs authentication, or for unusable certificates.
        """
        options = self.options
        check_binding(options.listen, self._has_auth, options.insecure)
        credentials = None if options.tls is None else server_credentials(options.tls.watched())
        if credentials is None and not is_loopback(options.listen):
            log.warning("listening on %s without TLS: others can read the traffic", options.listen)
        await self.set_serving(False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        try:
            if credentials is None:
                port = self.grpc.add_insecure_port(options.listen)
            else:
                port = self.grpc.add_secure_port(options.listen, credentials)
        except RuntimeError as error:
            raise PresiftError(
                f"cannot listen on {options.listen}: the address is in use or not of this machine"
            ) from error
        await self.grpc.start()
        return port

    async def set_serving(self, serving: bool, except_for: Collection[str] = ()) -> None:
        """Set grpc.health.v1 of the server and of all its names; those in `except_for` stay NOT_SERVING."""
        self.is_serving = serving and "" not in except_for and not self._is_draining
        for name in self._names:
            serves = serving and name not in except_for
            status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(name, status)

    def request_stop(self, *, failed: bool = False) -> None:
        """Make `run_until_stopped` drain, and return False if `failed`."""
        self._failed = self._failed or failed
        self._stop.set()

    def supervise(self, task: asyncio.Task[None]) -> None:
        """Make `run_until_stopped` drain, and return False, if `task` raises: the service would go on without it."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                if not isinstance(error, PresiftError):
                    log.error("%s failed", task.get_name(), exc_info=error)
                self.request_stop(failed=True)

        task.add_done_callback(ended)

    async def run_until_stopped(self) -> bool:
        """Wait for SIGTERM, SIGINT or `request_stop`, then drain. True unless something failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        with observed(*self.gauges()):
            await self._stop.wait()
            await self.drain()
        return not self._failed

    def gauges(self) -> tuple[Gauge, ...]:
        """What every service shows."""
        return (
            gauge("presift.serving", lambda: self.is_serving),
            gauge("presift.calls.running", lambda: self.calls.running),
            gauge("presift.received.bytes", lambda: self.calls.request_bytes),
            *self._guard.gauges(),
        )

    async def drain(self) -> None:
        """Set NOT_SERVING, after `lame_duck_s` refuse new calls, let running ones finish for `drain_s` seconds, then
        cancel them."""
        lame_duck_s = self.options.lame_duck_s if self.is_serving else 0.0  # else nobody calls it any more
        self.is_serving, self._is_draining = False, True
        await self._health.enter_graceful_shutdown()
        # Callers that reuse a connection would find it closed: HTTP clients and gateways do not repeat a POST.
        for listener in self.listeners:
            listener.announce_stop()
        await asyncio.sleep(lame_duck_s)
        if self.listeners:
            await asyncio.gather(*(each.stop_listening() for each in self.listeners))
            await asyncio.sleep(_LATE_REQUESTS_S)
        self.calls.close()
        # gRPC itself ends calls that the cancellation does not reach, because their caller does not read. The other
        # listeners do the same.
        within_s = self.options.drain_s + _CANCEL_S
        stopping = asyncio.gather(self.grpc.stop(within_s), *(each.stop(within_s) for each in self.listeners))
        await self.calls.wait_until_idle(self.options.drain_s)
        while not stopping.done():
            self.calls.cancel_all()
            await asyncio.wait((stopping,), timeout=0.1)
        await stopping


def _connection_age(options: ServerOptions) -> list[tuple[str, int]]:
    ages = {"": options.max_connection_age_s, "_grace": options.max_connection_age_grace_s}
    return [(f"grpc.max_connection_age{part}_ms", round(age * 1000)) for part, age in ages.items() if age is not None]


def _traced() -> grpc.aio.ServerInterceptor:
    # Health probes come every few seconds; their traces would hide the others.
    interceptor: grpc.aio.ServerInterceptor = aio_server_interceptor(filter_=filters.negate(filters.health_check()))
    return interceptor
