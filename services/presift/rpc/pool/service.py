"""What a pool needs to know about its service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic

import grpc

from presift.core.errors import PresiftError
from presift.rpc.pool.replica import I, ReplicaInfo, S


@dataclass(frozen=True, slots=True)
class Service(Generic[S, I]):
    """`role` is its name in metrics and messages; `unavailable` is raised when no replica can be used.

    `connect`: (address, whether it is the pool's only address) -> channel and stub. `get_info` raises PresiftError.
    `difference`: (reference info, a replica's info) -> why that replica is not used; empty if it is. The reference is
    the first replica's info. If `is_pinned` it never changes; else another's replaces it once no replica matches.
    """

    role: str
    unavailable: type[PresiftError]
    connect: Callable[[str, bool], tuple[grpc.aio.Channel, S]]
    get_info: Callable[[S], Awaitable[ReplicaInfo[I]]]
    difference: Callable[[I, I], str]
    is_pinned: bool
