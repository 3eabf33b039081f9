"""What a pool needs to know about its service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic

import grpc

from presift.core.errors import PresiftError
from presift.rpc.pool.replica import I, ReplicaInfo, S


def _always(reference: object, other: object) -> bool:
    return True


def _never(info: object) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Service(Generic[S, I]):
    """`role` is its name in metrics and messages; `unavailable` is raised when no replica can be used.

    `connect`: (address, whether it is the pool's only address) -> channel and stub. `get_info` raises PresiftError.
    `difference`: (reference info, a replica's info) -> why that replica is not used; empty if it is. Most replicas
    decide what the reference is (`reference.py`). If `is_pinned`, it stays for a while although no replica matches it.
    `can_replace`: (reference info, another) -> whether the other may become the reference.
    `refusal`: why a replica with this info is never used, whatever the others are; empty if it may be.
    """

    role: str
    unavailable: type[PresiftError]
    connect: Callable[[str, bool], tuple[grpc.aio.Channel, S]]
    get_info: Callable[[S], Awaitable[ReplicaInfo[I]]]
    difference: Callable[[I, I], str]
    is_pinned: bool
    can_replace: Callable[[I, I], bool] = _always
    refusal: Callable[[I], str] = _never
