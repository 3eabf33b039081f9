"""A replica: one address with its channel, its GetInfo answer, its circuit breaker and its load."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

import grpc

from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker

S = TypeVar("S")  # the service's stub
I = TypeVar("I")  # the content of its GetInfo answer  # noqa: E741

# A caller that waited less says nothing about the replica.
_MIN_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class ReplicaInfo(Generic[I]):
    """The GetInfo answer of a replica; `name` is the name of its process, or empty."""

    name: str
    info: I


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """The state of a replica, for people. `unused` is the reason why it is not used; empty if it is."""

    address: str
    role: str
    name: str
    is_healthy: bool
    breaker: BreakerState
    in_flight: int
    unused: str

    @property
    def is_usable(self) -> bool:
        """Whether calls may go there."""
        return self.is_healthy and not self.unused and self.breaker is not BreakerState.OPEN


class Replica(Generic[S, I]):
    """`known` is None while disconnected. `in_flight` counts the requests that this process has there."""

    def __init__(self, address: str, channel: grpc.aio.Channel, stub: S, breaker: CircuitBreaker) -> None:
        self.address = address
        self.channel = channel
        self.stub = stub
        self.breaker = breaker
        self.in_flight = 0
        self.known: ReplicaInfo[I] | None = None
        self.unused = ""
        self.was_tried = False
        self._messages = 0
        self._last_message_s = -math.inf

    @property
    def name(self) -> str:
        """The name of its process, or else its address."""
        return (self.known.name if self.known is not None else "") or self.address

    @property
    def is_healthy(self) -> bool:
        """Whether its channel is READY. In a pool of several this includes its health status (grpc.health.v1)."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    @property
    def is_usable(self) -> bool:
        """Healthy, and like the other replicas."""
        return self.known is not None and not self.unused and self.is_healthy

    @property
    def allows_call(self) -> bool:
        """Whether the circuit breaker allows a call: one request at a time while half open."""
        state = self.breaker.state
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and self.in_flight == 0)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as in flight until the block ends."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def record_message(self) -> None:
        """Record that it sent a message of any call, so it does not hang."""
        self._messages += 1
        self._last_message_s = monotonic()

    def record_silence(self, idle_s: float) -> None:
        """Report a call to the circuit breaker that waited for a message for `idle_s` seconds.

        It is no failure of the replica if that sent something, of any call, in the later half of this time.
        """
        if monotonic() - self._last_message_s >= idle_s / 2:
            self.breaker.record_failure(monotonic())

    @contextmanager
    def record_outcome(self, timeout_s: float | None) -> Iterator[None]:
        """Report the outcome of the call in this block to the circuit breaker. `timeout_s` is the call's.

        A cancelled call is no outcome, unless it waited and the replica sent no message of any call meanwhile:
        otherwise a replica that hangs, and whose callers all cancel, would stay the least loaded.
        """
        began, messages = monotonic(), self._messages
        try:
            yield
        except asyncio.CancelledError:
            if self._messages == messages and monotonic() - began >= _MIN_WAIT_S:
                self.breaker.record_failure(began)
            raise
        except grpc.aio.AioRpcError as failure:
            self._record_failure(failure.code(), timeout_s, began)
            raise
        self._record_success()

    def _record_failure(self, code: grpc.StatusCode, timeout_s: float | None, began: float) -> None:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            if timeout_s is not None and timeout_s >= _MIN_WAIT_S:
                self.breaker.record_failure(began)
        elif code is grpc.StatusCode.UNAVAILABLE:
            self.breaker.record_failure(began)
        else:
            self._record_success()

    def _record_success(self) -> None:
        self.record_message()
        self.breaker.record_success()

    def status(self, role: str) -> ReplicaStatus:
        """The current state."""
        return ReplicaStatus(
            self.address, role, self.name, self.is_healthy, self.breaker.state, self.in_flight, self.unused
        )
