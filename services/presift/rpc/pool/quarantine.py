"""A request that kills its replica must not kill the others: after two deaths it is refused for some minutes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from time import monotonic

import grpc
import numpy as np
from cachetools import TTLCache
from numpy.typing import NDArray

from presift.core.errors import InternalError
from presift.rpc.status import error_of

# Deaths in a row, without a complete answer between them.
MAX_DEATHS = 2
QUARANTINE_S = 300.0
_MAX_SUSPECTS = 4096
# gRPC's words for the loss of a connection. A replica that shuts down sends an error of presift.
_BROKEN = ("Socket closed", "Connection reset", "Broken pipe")
# A part of its words if no connection could be made, for example because a proxy without a replica closes it. The
# beginning depends on the channel, the end may be "Socket closed" here too.
_NOT_CONNECTED = "last error:"


@dataclass(frozen=True, slots=True)
class _Death:
    """`time` is that of time.monotonic."""

    replica: object
    time: float


class Quarantine:
    """Counts, by prompt, the replicas whose connections broke while they worked on it.

    A replica that dies with several requests for one prompt died once.
    """

    def __init__(self) -> None:
        self._deaths: TTLCache[bytes, tuple[_Death, ...]] = TTLCache(_MAX_SUSPECTS, QUARANTINE_S, monotonic)

    def check(self, suspect: bytes) -> None:
        """Raise InternalError, which is not retried, if too many replicas died with this prompt."""
        if len(self._deaths.get(suspect, ())) >= MAX_DEATHS:
            raise InternalError(
                f"the connection to {MAX_DEATHS} replicas broke while they worked on this prompt; "
                f"it is refused for {QUARANTINE_S:g} s"
            )

    def record_failure(self, suspect: bytes, replica: object, began: float, failure: grpc.aio.AioRpcError) -> None:
        """Count the failure of a call that `began` (time.monotonic) if the replica died.

        Equal prompts that ran together at one replica see the same death, which counts once.
        """
        if not has_died(failure):
            return
        deaths = self._deaths.get(suspect, ())
        if not any(each.replica is replica and each.time >= began for each in deaths):
            self._deaths[suspect] = (*deaths, _Death(replica, monotonic()))

    def record_answer(self, suspect: bytes) -> None:
        """The prompt was answered completely, so it is no longer a suspect."""
        self._deaths.pop(suspect, None)


def digest_of(token_ids: NDArray[np.uint32]) -> bytes:
    """The key of a prompt in the quarantine."""
    return hashlib.blake2b(token_ids.tobytes(), digest_size=16).digest()


def has_died(failure: grpc.aio.AioRpcError) -> bool:
    """Whether the connection broke after the request had been sent."""
    details = failure.details() or ""
    return (
        failure.code() is grpc.StatusCode.UNAVAILABLE
        and error_of(failure) is None
        and _NOT_CONNECTED not in details
        and any(words in details for words in _BROKEN)
    )
