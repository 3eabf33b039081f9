"""The pool of all replicas of one service. It follows replicas that appear and disappear.

A single fixed address is not watched: calls show whether it works, and gRPC itself retries them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any, Generic

from presift.core.errors import PresiftError
from presift.rpc.circuit_breaker import BreakerState, CircuitBreaker
from presift.rpc.pool.balancer import ReplicaRing, in_order
from presift.rpc.pool.health import watch
from presift.rpc.pool.heartbeat import keep_in_use
from presift.rpc.pool.reference import MINORITY_S, Reference
from presift.rpc.pool.replica import I, Replica, ReplicaStatus, S
from presift.rpc.pool.resolver import Addresses, DnsName, StaticAddresses, resolve
from presift.rpc.pool.retry import AttemptedReplicas, RetryBudget
from presift.rpc.pool.service import Service
from presift.rpc.tasks import start_detached
from presift.telemetry.metrics import count

RESOLVE_EVERY_S = 5.0
_INFO_TIMEOUT_S = 5.0
_RESTART_S = 1.0
# A replica whose address is gone is used for so many seconds at most: others of another kind are the reference by then.
_WITHDRAWN_S = MINORITY_S + 30.0
# A replica's circuit breaker opens after so many failures in a row, for so many seconds.
FAILURES, OPEN_S = 5, 5.0

log = logging.getLogger(__name__)


class ReplicaPool(Generic[S, I]):
    """Does not connect before it is first used. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        where: Addresses,
        service: Service[S, I],
        resolve_every_s: float = RESOLVE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = where
        self._service = service
        self._resolve_every_s = resolve_every_s
        self._replicas: dict[str, Replica[S, I]] = {}
        # Their addresses are gone; the value is when they are removed at the latest.
        self._withdrawn: dict[str, float] = {}
        self._clock = clock
        self._removed: list[Replica[S, I]] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._heartbeats: dict[Replica[S, I], asyncio.Task[None]] = {}
        self._ring = ReplicaRing(())
        self.retry_budget = RetryBudget()
        self._reference = Reference(service, clock)
        self._on_switch: Callable[[I], None] | None = None
        self._changed = asyncio.Event()
        if isinstance(where, StaticAddresses):
            self._set_addresses(where.addresses)

    @property
    def is_alone(self) -> bool:
        """Whether there is one fixed address, so nothing to choose."""
        return isinstance(self._where, StaticAddresses) and len(self._where.addresses) == 1

    @property
    def only(self) -> Replica[S, I]:
        """The replica of the single address."""
        self._watch()
        return next(iter(self._replicas.values()))

    @property
    def reference(self) -> I | None:
        """The info that all used replicas agree on; None until it is chosen, and for a single address."""
        return self._reference.info

    def refusal(self, info: I) -> str:
        """Why a replica with this info is never used; empty if it may be. A single fixed address is not watched, so
        whoever fetches its info checks it."""
        return self._service.refusal(info)

    def on_switch(self, call: Callable[[I], None]) -> None:
        """`call` gets the new reference whenever it replaces another."""
        self._on_switch = call

    async def info(self) -> I:
        """The reference. Waits a few seconds until all replicas are known, so that most of them choose it.

        Raises `unavailable` if none of them can be used then.
        """
        self._watch()
        try:
            async with asyncio.timeout(_INFO_TIMEOUT_S):
                while self.reference is None or not self.usable():
                    if self._replicas and all(each.was_tried for each in self._replicas.values()):
                        break
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        if self.reference is None:
            self._compare(is_late=True)
        if self.reference is None or not self.usable():
            raise self._unavailable()
        return self.reference

    def usable(self, without: Collection[Replica[S, I]] = (), like: I | None = None) -> list[Replica[S, I]]:
        """The replicas that may be called now, except `without`. If all breakers are open: all healthy ones, because
        refusing every call would gain nothing. `like` is the reference of a call that began before it was replaced."""
        found = [each for each in self._healthy(like) if each not in without]
        return found if self.is_alone else [each for each in found if each.allows_call] or found

    def _healthy(self, like: I | None) -> list[Replica[S, I]]:
        self._watch()
        if self.is_alone:
            return list(self._replicas.values())
        if like is None or like is self.reference:
            return [each for each in self._replicas.values() if each.is_usable]
        return [each for each in self._replicas.values() if self._is_like(like, each) and each.is_healthy]

    def _is_like(self, like: I, replica: Replica[S, I]) -> bool:
        return replica.known is not None and not self._service.difference(like, replica.known.info)

    def pick(
        self, key: str, tried: AttemptedReplicas[Replica[S, I]] | None = None, like: I | None = None
    ) -> list[Replica[S, I]]:
        """The usable replicas in the key's order. Tried ones only if there is no other, and never one that was full.

        Raises `unavailable` if none is left.
        """
        if tried is None:
            found = self.usable((), like)
        else:
            found = self.usable(tried.all, like) or self.usable(tried.full, like)
        if not found:
            raise self._unavailable()
        return found if len(found) == 1 else in_order(found, self._ring.order(key))

    def named(self, name: str, like: I | None = None) -> Replica[S, I] | None:
        """The replica of that name, if it is usable. It may be half open: `pick` gave its name out, and the call that
        was routed by it is the probe."""
        found = next((each for each in self._healthy(like) if each.name == name), None) if name else None
        if found is None or found.breaker.state is not BreakerState.OPEN or found in self.usable((), like):
            return found
        return None

    def statuses(self) -> list[ReplicaStatus]:
        """The status of every replica, sorted by address."""
        self._watch()
        return [self._replicas[address].status(self._service.role) for address in sorted(self._replicas)]

    async def aclose(self) -> None:
        """Stop watching, and close all channels."""
        await _cancel((*self._tasks.values(), *self._heartbeats.values()))
        for replica in (*self._replicas.values(), *self._removed):
            await replica.channel.close()

    def _unavailable(self) -> PresiftError:
        return self._service.unavailable(f"none of {len(self._replicas)} {self._service.role} replicas is usable")

    def _watch(self) -> None:
        if self._heartbeats or self._tasks:
            return
        if not self.is_alone:
            self._tasks[""] = _start(self._follow, f"find {self._service.role} replicas")
        for address in self._replicas:
            self._watch_one(address)

    def _watch_one(self, address: str) -> None:
        replica = self._replicas[address]
        self._heartbeats[replica] = _start(partial(keep_in_use, replica.channel), f"heartbeat {address}")
        if self.is_alone:
            return
        watching = partial(watch, replica, self._service, self._compare)
        self._tasks[address] = _start(watching, f"watch {self._service.role} {address}")

    async def _follow(self) -> None:
        """Look up the addresses, and review the reference: the replicas may differ for long without a change."""
        trouble = ""
        while True:
            if isinstance(self._where, DnsName):
                trouble = await self._resolve(self._where, trouble)
            self._compare()
            await asyncio.sleep(self._resolve_every_s)

    async def _resolve(self, where: DnsName, logged: str) -> str:
        """Returns what is wrong, which is logged unless it was `logged`."""
        try:
            self._set_addresses(await resolve(where))
            await self._close_removed()
        except Exception as error:  # keep the addresses: a name server that fails must not remove replicas
            trouble = f"{type(error).__name__}: {error}"
            if trouble != logged:
                log.warning("%s: cannot resolve %s: %s", self._service.role, where.host, trouble)
            return trouble
        return ""

    def _set_addresses(self, addresses: Iterable[str]) -> None:
        """Add replicas so that there is one for each of these addresses. The others are withdrawn."""
        wanted = set(addresses)
        last = self._clock() + _WITHDRAWN_S
        self._withdrawn = {each: self._withdrawn.get(each, last) for each in self._replicas if each not in wanted}
        new = sorted(wanted - set(self._replicas))
        for address in new:
            self._replicas[address] = self._connect(address)
            if self._tasks:
                self._watch_one(address)
        if new or self._withdrawn:
            self._ring = ReplicaRing(self._replicas)
            self._compare()

    def _remove_withdrawn(self) -> None:
        """Remove them once all others were tried and one of these is usable, or when their time is over. Connecting
        takes a while, and a name whose addresses have all changed would have no replica until then."""
        others = self._current()
        are_others_ready = all(each.was_tried for each in others) and any(each.is_usable for each in others)
        ended = [each for each, last in self._withdrawn.items() if are_others_ready or self._clock() >= last]
        if not ended:
            return
        if not are_others_ready:
            role, seconds = self._service.role, _WITHDRAWN_S
            log.warning("%s: %s removed, without an address for %.0f s", role, ", ".join(ended), seconds)
        for address in ended:
            del self._withdrawn[address]
            self._removed.append(self._replicas.pop(address))
            if address in self._tasks:
                self._tasks.pop(address).cancel()
        self._ring = ReplicaRing(self._replicas)

    def _current(self) -> list[Replica[S, I]]:
        return [self._replicas[address] for address in sorted(self._replicas) if address not in self._withdrawn]

    def _connect(self, address: str) -> Replica[S, I]:
        channel, stub = self._service.connect(address, self.is_alone)
        breaker = CircuitBreaker(FAILURES, OPEN_S, partial(self._breaker_moved, address))
        return Replica(address, channel, stub, breaker)

    def _breaker_moved(self, address: str, to: BreakerState) -> None:
        count("presift.replica.breaker", role=self._service.role, to=to.value)
        log.warning("circuit breaker of %s %s: %s", self._service.role, address, to)

    async def _close_removed(self) -> None:
        """Close removed replicas that have no requests in flight."""
        for replica in [each for each in self._removed if each.in_flight == 0]:
            self._removed.remove(replica)
            if replica in self._heartbeats:
                self._heartbeats.pop(replica).cancel()
            await replica.channel.close()

    def _compare(self, *, is_late: bool = False) -> None:
        """Choose or review the reference, and compare all known replicas with it. It is chosen once all replicas were
        tried, or if `is_late`. Withdrawn replicas do not influence it unless no other is known."""
        by_address = [self._replicas[address] for address in sorted(self._replicas)]
        known = [(each, each.known.info) for each in by_address if each.known is not None]
        current = [(each, info) for each, info in known if each.address not in self._withdrawn] or known
        allowed = [info for _, info in current if not self.refusal(info)]
        if is_late or all(each.was_tried for each in by_address):
            self._reference.choose(allowed)
        difference = self._reference.review(allowed)
        for each, info in known:
            unused = self.refusal(info)
            if self.reference is not None:
                unused = unused or self._service.difference(self.reference, info)
            if unused and unused != each.unused:
                log.warning("%s %s is not used: %s", self._service.role, each.address, unused)
            each.unused = unused
        if difference:
            self._record_switch(difference)
        self._remove_withdrawn()
        self._changed.set()

    def _record_switch(self, difference: str) -> None:
        role = self._service.role
        count("presift.replica.switches", role=role)
        log.warning("%s: another kind of replica is used now, because most are of it: %s", role, difference)
        if self._on_switch is not None and self.reference is not None:
            self._on_switch(self.reference)


def _start(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
    return start_detached(_restarted(work, name), name)


async def _restarted(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """A defect must not end the work in silence: the pool would keep what it knew last."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("%s failed; it starts again", name)
            await asyncio.sleep(_RESTART_S)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
