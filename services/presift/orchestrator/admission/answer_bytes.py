"""The bytes of answers that wait for slow readers, bounded as a sum.

Above the bound presift ends the answer whose caller has not read for longest, if that is at least 5 s; an answer that
is read may take all the room. If every caller has read within 5 s, it ends the answer that grows. If that one is small,
it ends instead the least recently read answer of at least its size: otherwise a few callers that read a little now and
then would end everybody's streams. Answers of tenants above a quarter of the bound end before all others. An answer
that is larger than the bound may wait alone.

All that an HTTP call holds is one answer: what its pipelines have read ahead, and what its response is made of. While
nothing of it is being sent, its caller counts as one that reads.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from presift.core.errors import Overloaded

FIELD = "unread_answer_bytes"
_RETRY_AFTER_S = 1.0
# A caller that has read nothing for this long does not read. A slow one reads at intervals: the system tells of free
# room in a socket's buffer only when a third of it, up to a MiB, is free.
_STALLED_S = 5.0

# An answer of at most 1/_SMALL_SHARE of the bound counts as small.
_SMALL_SHARE = 256

# Ends an answer, and forgets what waits of it.
Drop = Callable[[Overloaded], None]


class WaitingAnswer:
    """What waits of one answer, in bytes. Its caller has read nothing since `read_at_s`; if not `is_sending`, there
    was nothing to read."""

    def __init__(self, answers: AnswerBytes, tenant: str | None, drop: Drop) -> None:
        self._answers = answers
        self.tenant = tenant
        self.drops = [drop]
        self.is_sending = True
        self.held = 0
        self.read_at_s = 0.0

    def add(self, more: int) -> None:
        """More waits; less, if `more` is negative: the caller has read it. May drop this answer or others."""
        self._answers.change(self, more)

    def record_read(self) -> None:
        """The caller has read a part of what counts as a whole."""
        self._answers.change(self, 0)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Within the block a part of a `call`'s answer is being sent."""
        self.record_read()
        self.is_sending = True
        try:
            yield
        finally:
            self.is_sending = False


class AnswerPart:
    """What waits of a part of `whole`, in bytes."""

    def __init__(self, whole: WaitingAnswer) -> None:
        self._whole = whole
        self._held = 0

    def add(self, more: int) -> None:
        """As `WaitingAnswer.add`."""
        self._held += more
        self._whole.add(more)

    def end(self) -> None:
        """Nothing more waits of it."""
        if self._held:
            self.add(-self._held)


# The answer of the call that is being served. Its parts wait as one: a caller reads them all, or none.
_call_answer: ContextVar[WaitingAnswer | None] = ContextVar("_call_answer", default=None)


class AnswerBytes:
    """`limit` for all answers together. `on_end` is called for each that ends. `clock` is monotonic, in seconds."""

    def __init__(
        self, limit: int, on_end: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._on_end = on_end
        self._share, self._small = limit // 4, limit // _SMALL_SHARE
        self._clock = clock
        self._open: set[WaitingAnswer] = set()
        # Those of which something waits, in the order in which their callers last read.
        self._unread: OrderedDict[WaitingAnswer, None] = OrderedDict()
        self._tenants = Counter[str | None]()
        self.held = 0

    @contextmanager
    def waiting(self, tenant: str | None, drop: Drop) -> Iterator[WaitingAnswer]:
        """Count an answer until the block ends, or until it is dropped."""
        answer = WaitingAnswer(self, tenant, drop)
        self._open.add(answer)
        try:
            yield answer
        finally:
            self._forget(answer)
            # Timers that began in a call keep its context, and so the answer, for up to an hour.
            answer.drops.remove(drop)

    @contextmanager
    def call(self, tenant: str | None, drop: Drop) -> Iterator[WaitingAnswer]:
        """The same for a whole call: what `part` counts within the block, and in tasks that begin in it, belongs to it,
        and its drops are called too."""
        with self.waiting(tenant, drop) as answer:
            answer.is_sending = False
            token = _call_answer.set(answer)
            try:
                yield answer
            finally:
                _call_answer.reset(token)

    @contextmanager
    def part(self, tenant: str | None, drop: Drop) -> Iterator[WaitingAnswer | AnswerPart]:
        """Count a part of the call's answer; outside a `call`, an answer of its own."""
        whole = _call_answer.get()
        if whole is None:
            with self.waiting(tenant, drop) as answer:
                yield answer
            return
        part = AnswerPart(whole)
        whole.drops.append(drop)
        try:
            yield part
        finally:
            whole.drops.remove(drop)
            part.end()

    def change(self, answer: WaitingAnswer, more: int) -> None:
        """See `WaitingAnswer.add`."""
        if answer not in self._open:
            return
        if more <= 0 or not answer.held:
            answer.read_at_s = self._clock()
            self._unread[answer] = None
            self._unread.move_to_end(answer)
        self._count(answer, more)
        if more > 0 and self.held > self._limit:
            self._make_room(answer)

    def _make_room(self, adding: WaitingAnswer) -> None:
        for each in self._to_end(adding):
            if self.held <= self._limit or each.held == self.held:
                return
            error = self._error(each)
            self._forget(each)
            self._on_end()
            for drop in tuple(each.drops):
                drop(error)

    def _error(self, ended: WaitingAnswer) -> Overloaded:
        """One that is larger than the bound would end again: each retry would be generated in vain."""
        if not self._exceeds_limit(ended):
            return Overloaded(FIELD, self.held, f"<= {self._limit}", _RETRY_AFTER_S)
        return Overloaded(FIELD, ended.held, f"<= {self._limit} (max_answers_mib) beside other answers", None)

    def _to_end(self, adding: WaitingAnswer) -> Iterator[WaitingAnswer]:
        """The answers in the order in which they end until there is room for `adding`: those above the whole bound,
        then those of tenants above their share, then all; in each group first those whose callers do not read, and the
        least recently read first."""
        stalled_since_s = self._clock() - _STALLED_S
        stalled = {each for each in self._unread if each.is_sending and each.read_at_s <= stalled_since_s}
        groups: tuple[Callable[[WaitingAnswer], bool], ...] = (
            self._exceeds_limit,
            self._exceeds_share,
            lambda _: True,
        )
        for goes_first in groups:
            group = sorted(filter(goes_first, self._unread), key=lambda each: each not in stalled)
            has_adding = adding in group
            for place, each in enumerate(group):
                if each not in self._unread or not goes_first(each):
                    continue
                if has_adding and goes_first(adding) and each not in stalled:
                    yield self._choose_read(group[place:], adding)
                    break
                yield each

    def _choose_read(self, read: Sequence[WaitingAnswer], adding: WaitingAnswer) -> WaitingAnswer:
        """The one of `read`, the least recently read first, that ends for `adding`, which is among them."""
        if adding.held > self._small:
            return adding
        return next(each for each in read if each.held >= adding.held)

    def _exceeds_limit(self, answer: WaitingAnswer) -> bool:
        return answer.held > self._limit

    def _exceeds_share(self, answer: WaitingAnswer) -> bool:
        return answer.tenant is not None and self._tenants[answer.tenant] > self._share

    def _count(self, answer: WaitingAnswer, more: int) -> None:
        answer.held += more
        self.held += more
        self._tenants[answer.tenant] += more
        if not self._tenants[answer.tenant]:
            del self._tenants[answer.tenant]
        if not answer.held:
            self._unread.pop(answer, None)

    def _forget(self, answer: WaitingAnswer) -> None:
        if answer in self._open:
            self._open.remove(answer)
            self._count(answer, -answer.held)
