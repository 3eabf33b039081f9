"""What a fleet must know of its service: how to reach a replica, how to ask what it is, which of them go together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic

import grpc

from presift.core.errors import PresiftError
from presift.rpc.pool.replica import I, ReplicaInfo, S


@dataclass(frozen=True, slots=True)
class Service(Generic[S, I]):
    """`role` is its name in words; `unavailable` what is raised where no replica can be asked.

    `connect`: (address, whether it is the only one for good) -> channel and stub. `ask` raises PresiftError.
    `differs`: (the first one's, another's) -> why that other is not to be used, empty where it is. `is_pinned`: the
    first one's stays the measure for good; else another's becomes it once nobody is like the first any more.
    """

    role: str
    unavailable: type[PresiftError]
    connect: Callable[[str, bool], tuple[grpc.aio.Channel, S]]
    ask: Callable[[S], Awaitable[ReplicaInfo[I]]]
    differs: Callable[[I, I], str]
    is_pinned: bool
