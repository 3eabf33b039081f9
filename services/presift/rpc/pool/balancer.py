"""Chooses among replicas: by key, so that equal prompts reach the same one, and by load. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Protocol, TypeVar

from uhashring import HashRing

# The most that a replica may have in flight, as a multiple of its equal share.
BOUND = 1.25


class Loaded(Protocol):
    """A replica: its address, and the requests that this process has in flight there."""

    @property
    def address(self) -> str: ...

    @property
    def in_flight(self) -> int: ...


L = TypeVar("L", bound=Loaded)


class ReplicaRing:
    """A consistent hash ring: all orchestrators order replicas alike for a key. Adding or removing a replica moves
    only that replica's share of the keys."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._ring = HashRing(nodes=sorted(addresses), hash_fn=_digest)

    def order(self, key: str) -> list[str]:
        """All addresses, starting with the one that the key hashes to."""
        return [str(node["nodename"]) for node in self._ring.range(key)] if self._ring.size else []


def in_order(replicas: Iterable[L], order: Sequence[str]) -> list[L]:
    """The replicas in the order of their addresses in `order`; others last."""
    places = {address: place for place, address in enumerate(order)}
    return sorted(replicas, key=lambda each: places.get(each.address, len(places)))


def least_loaded(replicas: Sequence[L]) -> L:
    """The replica with the fewest requests in flight; the first of equals. Raises ValueError if there is no replica."""
    return min(replicas, key=lambda each: each.in_flight)


def within_bound(replicas: Sequence[L]) -> list[L]:
    """The replicas that may take one more request: consistent hashing with bounded loads. Empty only if `replicas` is.

    The bound counts only requests already in flight, so that two simultaneous requests go to the same replica.
    """
    limit = ceil(BOUND * sum(each.in_flight for each in replicas) / max(1, len(replicas)))
    return [each for each in replicas if each.in_flight <= limit]


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
