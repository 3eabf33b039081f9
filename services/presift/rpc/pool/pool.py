"""A fleet: all replicas of one service, as they come and go.

A single address is not watched: whoever calls it learns by the call how it is, and gRPC tries again by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable
from contextvars import Context
from functools import partial
from typing import Any, Generic

from presift.core.errors import PresiftError
from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker
from presift.rpc.pool.balancer import ReplicaRing, in_order
from presift.rpc.pool.health import watch
from presift.rpc.pool.replica import I, Replica, ReplicaStatus, S
from presift.rpc.pool.resolver import Addresses, DnsName, StaticAddresses, resolve
from presift.rpc.pool.retry import AttemptedReplicas
from presift.rpc.pool.service import Service
from presift.telemetry.metrics import count

RESOLVE_EVERY_S = 5.0
_FIRST_WITHIN_S = 5.0
# A replica's circuit breaker opens after so many failures in a row, for so many seconds.
FAILURES, OPEN_S = 5, 5.0

log = logging.getLogger(__name__)


class ReplicaPool(Generic[S, I]):
    """Connects to nothing before the first question."""

    def __init__(self, where: Addresses, service: Service[S, I], resolve_every_s: float = RESOLVE_EVERY_S) -> None:
        self._where = where
        self._service = service
        self._resolve_every_s = resolve_every_s
        self._replicas: dict[str, Replica[S, I]] = {}
        self._leaving: list[Replica[S, I]] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ring = ReplicaRing(())
        self._measure: I | None = None
        self._changed = asyncio.Event()
        if isinstance(where, StaticAddresses):
            self._have(where.addresses)

    @property
    def is_alone(self) -> bool:
        """Whether there is one address for good, and so nothing to choose."""
        return isinstance(self._where, StaticAddresses) and len(self._where.addresses) == 1

    @property
    def only(self) -> Replica[S, I]:
        """The replica of a single address."""
        return next(iter(self._replicas.values()))

    async def first(self) -> I:
        """What the replicas in use say of themselves. Raises `unavailable` where none does within some seconds."""
        self._watch()
        try:
            async with asyncio.timeout(_FIRST_WITHIN_S):
                while self._measure is None or not self.usable():
                    if self._replicas and all(each.was_tried for each in self._replicas.values()):
                        break
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        if self._measure is None or not self.usable():
            raise self._nobody()
        return self._measure

    def usable(self, without: Collection[Replica[S, I]] = ()) -> list[Replica[S, I]]:
        """Those that may be asked now. Where all breakers are open, all that are healthy: nothing is gained by asking
        nobody."""
        found = [each for each in self._healthy() if each not in without]
        return found if self.is_alone else [each for each in found if each.may_be_asked] or found

    def _healthy(self) -> list[Replica[S, I]]:
        self._watch()
        return [each for each in self._replicas.values() if self.is_alone or each.is_usable]

    def pick(self, key: str, tried: AttemptedReplicas[Replica[S, I]] | None = None) -> list[Replica[S, I]]:
        """`usable` in the key's order; of those that were tried only where there is no other, and never who was full.
        Raises `unavailable`."""
        found = self.usable() if tried is None else self.usable(tried.all) or self.usable(tried.full)
        if not found:
            raise self._nobody()
        return found if len(found) == 1 else in_order(found, self._ring.order(key))

    def named(self, name: str) -> Replica[S, I] | None:
        """The replica of that name, if it can be asked. That its breaker is half open is no hindrance: who names it was
        shown there, and it is they whom it waits for."""
        found = next((each for each in self._healthy() if each.name == name), None) if name else None
        if found is None or found.breaker.state is not BreakerState.OPEN or found in self.usable():
            return found
        return None

    def standings(self) -> list[ReplicaStatus]:
        """How they stand, by address."""
        self._watch()
        return [self._replicas[address].standing(self._service.role) for address in sorted(self._replicas)]

    async def aclose(self) -> None:
        """Stop watching, and close all channels."""
        await _ended(self._tasks.values())
        for replica in (*self._replicas.values(), *self._leaving):
            await replica.channel.close()

    def _nobody(self) -> PresiftError:
        return self._service.unavailable(f"none of {len(self._replicas)} {self._service.role} replicas can be asked")

    def _watch(self) -> None:
        if self.is_alone or self._tasks:
            return
        self._tasks[""] = _begun(self._find(), f"find {self._service.role} replicas")
        for address in self._replicas:
            self._watch_one(address)

    def _watch_one(self, address: str) -> None:
        watching = watch(self._replicas[address], self._service, self._compare)
        self._tasks[address] = _begun(watching, f"watch {self._service.role} {address}")

    async def _find(self) -> None:
        trouble = ""
        while isinstance(self._where, DnsName):
            try:
                self._have(await resolve(self._where))
                await self._close_left()
                trouble = ""
            except Exception as error:  # what was found stays: a name server that is away takes nobody along
                if trouble != (trouble := f"{type(error).__name__}: {error}"):
                    log.warning("%s: %s is not found: %s", self._service.role, self._where.host, trouble)
            await asyncio.sleep(self._resolve_every_s)

    def _have(self, addresses: Iterable[str]) -> None:
        """These are the replicas now."""
        wanted = set(addresses)
        if wanted == set(self._replicas):
            return
        for address in set(self._replicas) - wanted:
            self._leaving.append(self._replicas.pop(address))
            if address in self._tasks:
                self._tasks.pop(address).cancel()
        for address in sorted(wanted - set(self._replicas)):
            self._replicas[address] = self._made(address)
            if self._tasks:
                self._watch_one(address)
        self._ring = ReplicaRing(self._replicas)
        self._compare()

    def _made(self, address: str) -> Replica[S, I]:
        channel, stub = self._service.connect(address, self.is_alone)
        breaker = CircuitBreaker(FAILURES, OPEN_S, partial(self._breaker_moved, address))
        return Replica(address, channel, stub, breaker)

    def _breaker_moved(self, address: str, to: BreakerState) -> None:
        count("presift.replica.breaker", role=self._service.role, to=to.value)
        log.warning("breaker of %s %s: %s", self._service.role, address, to)

    async def _close_left(self) -> None:
        """Whoever left is let go once nothing of ours is under way there."""
        for replica in [each for each in self._leaving if each.in_flight == 0]:
            self._leaving.remove(replica)
            await replica.channel.close()

    def _compare(self) -> None:
        """Hold all that are known against the measure; find another, where it may move and nobody is like it."""
        known = [(each, each.known.info) for each in self._replicas.values() if each.known is not None]
        if self._measure is not None and not self._service.is_pinned:
            has_likes = any(not self._service.differs(self._measure, info) for _, info in known)
            self._measure = self._measure if has_likes or not known else None
        for each, info in known:
            if self._measure is None:
                self._measure = info
            unused = self._service.differs(self._measure, info)
            if unused and unused != each.unused:
                log.warning("%s %s is not used: %s", self._service.role, each.address, unused)
            each.unused = unused
        self._changed.set()


def _begun(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """In a context of its own: it outlives the request that asked first, whose trace and tenant are not its."""
    return asyncio.create_task(work, name=name, context=Context())


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
