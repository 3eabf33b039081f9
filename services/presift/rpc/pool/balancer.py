"""Choosing among replicas: by a key, so that equal prompts meet, and by load, so that no one drowns. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Protocol, TypeVar

from uhashring import HashRing

# A replica may have this times its share of the requests in flight.
BOUND = 1.25


class Loaded(Protocol):
    """What has an address and requests of ours in flight."""

    @property
    def address(self) -> str: ...

    @property
    def in_flight(self) -> int: ...


L = TypeVar("L", bound=Loaded)


class ReplicaRing:
    """A consistent hash ring: every orchestrator has the same order for a key, and who comes or goes moves only its
    share."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._ring = HashRing(nodes=sorted(addresses), hash_fn=_digest)

    def order(self, key: str) -> list[str]:
        """The addresses, the key's own first."""
        return [str(node["nodename"]) for node in self._ring.range(key)] if self._ring.size else []


def in_order(replicas: Iterable[L], order: Sequence[str]) -> list[L]:
    """The replicas by their place in `order`; those without one last."""
    places = {address: place for place, address in enumerate(order)}
    return sorted(replicas, key=lambda each: places.get(each.address, len(places)))


def least_loaded(replicas: Sequence[L]) -> L:
    """The one with the fewest in flight; of equals the first. Raises ValueError where there is none."""
    return min(replicas, key=lambda each: each.in_flight)


def within_bound(replicas: Sequence[L]) -> list[L]:
    """Those that may take one more request: consistent hashing with bounded loads. Never none where there is one.

    Held against what is there already, so that two requests at once do not part.
    """
    limit = ceil(BOUND * sum(each.in_flight for each in replicas) / max(1, len(replicas)))
    return [each for each in replicas if each.in_flight <= limit]


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
