"""The reference of a pool: the info of the replicas that it uses. Others are not used.

Most replicas decide, so that one that differs (a canary, a failed self-check) decides nothing, and all orchestrators
use the same ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic

from presift.rpc.pool.replica import I, S
from presift.rpc.pool.service import Service

# The reference is replaced after it was that of a minority for so long: a replica that reconnects changes nothing.
MINORITY_S = 60.0


class Reference(Generic[S, I]):
    """`info` is None until it is chosen. `clock` is monotonic, in seconds."""

    def __init__(self, service: Service[S, I], clock: Callable[[], float] = time.monotonic) -> None:
        self.info: I | None = None
        self._service = service
        self._clock = clock
        self._minority_since: float | None = None

    def choose(self, known: Sequence[I]) -> None:
        """Choose it, if there is none, as the info that most replicas have; of equals, that of the first."""
        if self.info is None:
            self.info = self._of_most(known)

    def review(self, known: Sequence[I]) -> str:
        """Replace it if fewer replicas have had it than another info for MINORITY_S, or, unless the service is pinned,
        if no replica is like it. Returns what is different then, else an empty text."""
        if self.info is None:
            return ""
        former, found = self.info, self._of_most([each for each in known if self._service.can_replace(self.info, each)])
        if found is None or self._is_same(found, former):
            self._minority_since = None
            return ""
        if self._minority_since is None:
            self._minority_since = self._clock()
        has_match = any(not self._service.difference(former, each) for each in known)
        if self._clock() - self._minority_since < MINORITY_S and (self._service.is_pinned or has_match):
            return ""
        self.info, self._minority_since = found, None
        return self._service.difference(former, found) or "it can do more"

    def _of_most(self, known: Sequence[I]) -> I | None:
        """None if no replica is known. Of equals the reference, then the first."""
        kinds = [] if self.info is None else [self.info]
        replicas = Counter[int]()
        for info in known:
            kind = next((i for i, each in enumerate(kinds) if self._is_same(each, info)), len(kinds))
            if kind == len(kinds):
                kinds.append(info)
            replicas[kind] += 1
        return kinds[max(range(len(kinds)), key=lambda kind: replicas[kind])] if replicas else None

    def _is_same(self, one: I, other: I) -> bool:
        return not self._service.difference(one, other) and not self._service.difference(other, one)
