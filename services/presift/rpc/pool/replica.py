"""A replica: one address, its channel, what it said of itself, how it fares."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

import grpc

from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker

S = TypeVar("S")  # the service's stub
I = TypeVar("I")  # what it says of itself  # noqa: E741

# Who waited less says something of the caller, not of the replica.
_LEAST_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class ReplicaInfo(Generic[I]):
    """What a replica says of itself; `name` is what it calls its process, empty where it says nothing."""

    name: str
    info: I


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """How a replica stands, for people: `unused` says in words why it is not asked, empty where it is."""

    address: str
    role: str
    name: str
    is_healthy: bool
    breaker: BreakerState
    in_flight: int
    unused: str

    @property
    def is_usable(self) -> bool:
        """Whether it can be asked."""
        return self.is_healthy and not self.unused and self.breaker is not BreakerState.OPEN


class Replica(Generic[S, I]):
    """`known` is None until it has introduced itself, and again once it is gone. `in_flight`: our requests there."""

    def __init__(self, address: str, channel: grpc.aio.Channel, stub: S, breaker: CircuitBreaker) -> None:
        self.address = address
        self.channel = channel
        self.stub = stub
        self.breaker = breaker
        self.in_flight = 0
        self.known: ReplicaInfo[I] | None = None
        self.unused = ""
        self.was_tried = False
        self._words = 0

    @property
    def name(self) -> str:
        """Of the process, else its address."""
        return (self.known.name if self.known is not None else "") or self.address

    @property
    def is_healthy(self) -> bool:
        """Whether it is connected and, of several, says that it serves: then gRPC's health checking is a part of the
        channel's state."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    @property
    def is_usable(self) -> bool:
        """Healthy, and what it should be."""
        return self.known is not None and not self.unused and self.is_healthy

    @property
    def may_be_asked(self) -> bool:
        """What the breaker says: where it is half open, one request at a time."""
        state = self.breaker.state
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and self.in_flight == 0)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A request of ours is there, or is to go there, until the block ends."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def spoke(self) -> None:
        """It said something, to whomever: it is no hung one."""
        self._words += 1

    @contextmanager
    def judged(self, timeout_s: float | None) -> Iterator[None]:
        """The breaker hears how the call of this block went. A caller who leaves says nothing, unless they had waited
        and the replica had no word for anybody: a hung one, whose callers all leave, would stay the least loaded."""
        began, words = monotonic(), self._words
        try:
            yield
        except asyncio.CancelledError:
            if self._words == words and monotonic() - began >= _LEAST_PATIENCE_S:
                self.breaker.record_failure(began)
            raise
        except grpc.aio.AioRpcError as failure:
            self._judge(failure.code(), timeout_s, began)
            raise
        self._answered()

    def _judge(self, code: grpc.StatusCode, timeout_s: float | None, began: float) -> None:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            if timeout_s is not None and timeout_s >= _LEAST_PATIENCE_S:
                self.breaker.record_failure(began)
        elif code is grpc.StatusCode.UNAVAILABLE:
            self.breaker.record_failure(began)
        else:
            self._answered()

    def _answered(self) -> None:
        self.spoke()
        self.breaker.record_success()

    def standing(self, role: str) -> ReplicaStatus:
        """How it stands now."""
        return ReplicaStatus(
            self.address, role, self.name, self.is_healthy, self.breaker.state, self.in_flight, self.unused
        )
