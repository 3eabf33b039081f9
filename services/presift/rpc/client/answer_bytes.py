"""The bytes of answers that wait for slow readers: bounded as a sum, and for each tenant.

Beyond a bound the largest answer ends, so that slow readers do not make others fail. An answer that is larger than the
bound may wait alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from presift.core.errors import Overloaded

FIELD = "unread_answer_bytes"
_RETRY_AFTER_S = 1.0

# Ends an answer, and forgets what waits of it.
Drop = Callable[[Overloaded], None]


class WaitingAnswer:
    """What waits of one answer."""

    def __init__(self, answers: AnswerBytes, tenant: str | None, drop: Drop) -> None:
        self._answers = answers
        self.tenant = tenant
        self.drop = drop
        self.held = 0

    def add(self, more: int) -> None:
        """More waits; less, if `more` is negative. May drop this answer or another one."""
        self._answers.change(self, more)


class AnswerBytes:
    """`limit` for all answers, a quarter of it for those of one tenant."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = limit // 4
        self._waiting: set[WaitingAnswer] = set()
        self._tenants = Counter[str | None]()
        self.held = 0

    @contextmanager
    def waiting(self, tenant: str | None, drop: Drop) -> Iterator[WaitingAnswer]:
        """Count an answer until the block ends, or until it is dropped."""
        answer = WaitingAnswer(self, tenant, drop)
        self._waiting.add(answer)
        try:
            yield answer
        finally:
            self._forget(answer)

    def change(self, answer: WaitingAnswer, more: int) -> None:
        """See `WaitingAnswer.add`."""
        if answer not in self._waiting:
            return
        answer.held += more
        self.held += more
        self._tenants[answer.tenant] += more
        if answer.tenant is not None and (held := self._tenants[answer.tenant]) > self._share:
            own = (each for each in self._waiting if each.tenant == answer.tenant)
            self._drop_largest(own, Overloaded(f"{FIELD} of the tenant", held, f"<= {self._share}", _RETRY_AFTER_S))
        if self.held > self._limit:
            error = Overloaded(FIELD, self.held, f"<= {self._limit}", _RETRY_AFTER_S)
            self._drop_largest(self._waiting, error)

    def _drop_largest(self, answers: Iterable[WaitingAnswer], error: Overloaded) -> None:
        waiting = [each for each in answers if each.held]
        if len(waiting) > 1:
            largest = max(waiting, key=lambda each: each.held)
            self._forget(largest)
            largest.drop(error)

    def _forget(self, answer: WaitingAnswer) -> None:
        if answer in self._waiting:
            self._waiting.remove(answer)
            self.held -= answer.held
            self._tenants[answer.tenant] -= answer.held
            if not self._tenants[answer.tenant]:
                del self._tenants[answer.tenant]
