"""The bytes of answers that are not read: bounded as a sum, beyond which answers end whose callers do not read."""

import asyncio
from contextlib import ExitStack, aclosing
from functools import partial

import pytest

from presift.core.errors import Overloaded
from presift.orchestrator.admission import answer_bytes
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.backends.stream_reader import Held, buffered

STALLED_S = answer_bytes._STALLED_S


class Answers:
    def __init__(self, limit):
        self.now_s, self.errors, self.exit = 0.0, {}, ExitStack()
        self.bytes = AnswerBytes(limit, clock=lambda: self.now_s)

    def open(self, name, tenant=None):
        return self.exit.enter_context(self.bytes.waiting(tenant, partial(self.errors.__setitem__, name)))

    def wait(self, seconds=STALLED_S):
        self.now_s += seconds


def test_the_one_ends_whose_caller_has_read_nothing_for_longest():
    answers = Answers(100)
    first, second, third = answers.open("first"), answers.open("second"), answers.open("third")
    first.add(20)
    second.add(70)
    answers.wait()
    first.add(-5)
    answers.wait()
    third.add(15)
    assert not answers.errors
    third.add(1)
    assert list(answers.errors) == ["second"] and answers.bytes.held == 31
    error = answers.errors["second"]
    assert (error.field, error.value, error.limit) == ("unread_answer_bytes", 101, "<= 100") and error.retry_after_s > 0
    second.add(1000)  # it ends soon
    assert answers.bytes.held == 31
    first.add(-15)
    answers.exit.close()
    assert answers.bytes.held == 0 and not answers.bytes._tenants
    assert not answers.bytes._open and not answers.bytes._unread


def test_a_large_answer_that_is_read_ends_for_no_other():
    """Whether it shrinks, as a stream, or counts until its end, as a whole response."""
    answers = Answers(100)
    whole, stream, stalled = answers.open("whole"), answers.open("stream"), answers.open("stalled")
    for each, size in ((stalled, 5), (whole, 60), (stream, 30)):
        each.add(size)
    for _ in range(10):
        answers.wait(STALLED_S / 2)
        whole.record_read()
        stream.add(-1)
    stream.add(20)
    assert list(answers.errors) == ["stalled"] and answers.bytes.held == 100


def test_while_all_are_read_the_one_ends_that_asks_for_more():
    answers = Answers(100)
    large, other = answers.open("large"), answers.open("other")
    large.add(90)
    answers.wait(STALLED_S / 2)
    other.add(11)
    assert list(answers.errors) == ["other"] and answers.bytes.held == 90


def test_a_tenant_that_is_within_its_share_again_ends_for_no_other():
    """Once one of its answers has ended, only the other tenant holds more than a quarter."""
    answers = Answers(100)
    stalled, large, asking = answers.open("stalled", "a"), answers.open("large", "b"), answers.open("asking", "a")
    stalled.add(6)
    answers.wait()
    large.add(78)
    asking.add(24)
    assert list(answers.errors) == ["stalled", "large"] and answers.bytes.held == 24


def test_a_small_answer_has_room_even_if_all_are_read():
    """Else callers that read a little now and then would end everybody's streams."""
    answers = Answers(25_600)
    trickled, read, tiny, large = (answers.open(name) for name in ("trickled", "read", "tiny", "large"))
    trickled.add(12_000)
    tiny.add(50)
    read.add(13_000)
    answers.wait(STALLED_S / 2)
    large.add(600)
    assert list(answers.errors) == ["large"], "it is not small"
    for number in range(5):
        answers.open(number).add(100)
    assert list(answers.errors) == ["large"] and answers.bytes.held == 25_550
    answers.open("another").add(100)
    assert list(answers.errors) == ["large", "trickled"] and answers.bytes.held == 13_650


def test_a_small_answer_ends_where_all_are_smaller():
    answers = Answers(25_600)
    for number in range(640):
        answers.open(number).add(40)
    answers.open("larger").add(100)
    assert list(answers.errors) == ["larger"] and answers.bytes.held == 25_600


def test_as_many_end_as_make_room():
    answers = Answers(100)
    small = [answers.open(number) for number in range(10)]
    for each in small:
        each.add(9)
    answers.wait()
    answers.open("new").add(30)
    assert list(answers.errors) == [0, 1, 2] and answers.bytes.held == 93


def test_what_was_read_to_its_end_has_not_stood_still():
    """A stream that its caller has caught up with begins to wait with its next piece."""
    answers = Answers(100)
    stream, other = answers.open("stream"), answers.open("other")
    stream.add(10)
    stream.add(-10)
    answers.wait()
    stream.add(10)
    other.add(91)
    assert list(answers.errors) == ["other"]


def test_a_tenant_that_does_not_read_ends_no_answer_of_another():
    answers = Answers(100)
    other = answers.open("other", "other")
    other.add(20)
    answers.wait()
    mine = [answers.open(number, "acme") for number in range(2)]
    for each in mine:
        each.add(40)
    assert not answers.errors, "a tenant may have more than its share while there is room"
    other.add(1)
    assert list(answers.errors) == [0] and answers.bytes.held == 61
    # Of its own the one ends that asks for more: all are read.
    answers.open(2, "acme").add(40)
    assert list(answers.errors) == [0, 2] and answers.bytes.held == 61


def test_an_answer_that_is_larger_than_the_bound_may_wait_alone():
    """Log probabilities of a long prompt are one piece."""
    answers = Answers(100)
    large, other = answers.open("large", "acme"), answers.open("other", "acme")
    large.add(150)
    assert not answers.errors
    other.add(1)
    assert list(answers.errors) == ["large"] and answers.bytes.held == 1
    error = answers.errors["large"]
    assert (error.value, error.retry_after_s) == (150, None), "a retry would end, too"
    assert "<= 100 (max_answers_mib)" in error.message


def test_an_answer_of_which_nothing_is_being_sent_has_not_stood_still():
    """Its target pauses, or the next prompt of its batch waits for admission."""
    answers, ended = Answers(100), []
    with answers.bytes.call(None, lambda _: ended.append("whole")) as whole:
        whole.add(60)
        stalled = answers.open("stalled")
        stalled.add(10)
        answers.wait()
        answers.open("large").add(31)
        assert not ended and list(answers.errors) == ["stalled"]
        answers.open("larger").add(41)
        assert not ended and list(answers.errors) == ["stalled", "larger"]
        with whole.sending():
            answers.wait(STALLED_S / 2)
            answers.open("another").add(41)
            assert not ended
            answers.wait()
            answers.open("last").add(41)
            assert ended == ["whole"]


def test_ended_answers_are_counted():
    counted = []
    answers = AnswerBytes(100, lambda: counted.append(1))
    with ExitStack() as exit:
        for _ in range(3):
            exit.enter_context(answers.waiting(None, lambda error: None)).add(60)
    assert len(counted) == 2


class Stream:
    """Pieces of ten bytes, until it is cancelled."""

    def __init__(self, answers, pieces):
        self.answers, self.pieces = answers, pieces
        self.cancelled, self.written = asyncio.Event(), asyncio.Event()

    async def write(self, put):
        for number in range(self.pieces):
            put(number)
        self.written.set()
        await self.cancelled.wait()

    def read(self):
        held = Held(partial(self.answers.waiting, None), lambda _: 10)
        return buffered(self.write, self.cancelled.set, None, held)


async def test_a_stream_whose_consumer_stops_ends_and_is_forgotten():
    now_s = [0.0]
    answers = AnswerBytes(100, clock=lambda: now_s[0])
    stalled, read = Stream(answers, 9), Stream(answers, 9)
    async with aclosing(stalled.read()) as pieces, aclosing(read.read()) as others:
        assert await anext(pieces) == 0
        await stalled.written.wait()
        assert answers.held == 90, "the piece that is being written counts"
        now_s[0] += STALLED_S
        for number in range(9):
            assert await anext(others) == number
        assert stalled.cancelled.is_set() and not read.cancelled.is_set()
        assert answers.held == 10
        with pytest.raises(Overloaded, match="unread_answer_bytes is "):
            await anext(pieces)
    assert answers.held == 0


async def test_what_is_read_counts_no_more():
    answers = AnswerBytes(100)
    stream = Stream(answers, 3)
    async with aclosing(stream.read()) as pieces:
        for left in (30, 20, 10):
            await anext(pieces)
            assert answers.held == left
    assert answers.held == 0 and stream.cancelled.is_set()


def test_the_parts_of_a_call_are_one_answer():
    """Or a call that is alone would have to make room for itself, and its small parts would end other answers."""
    answers = Answers(100)
    errors, other = answers.errors, answers.open("other")

    def counted(count, name):
        return answers.exit.enter_context(count("a", partial(errors.__setitem__, name)))

    call = counted(answers.bytes.call, "call")
    pieces, more = counted(answers.bytes.part, "pieces"), counted(answers.bytes.part, "more")
    call.add(50)
    pieces.add(80)
    more.add(20)
    assert not errors and call.held == answers.bytes.held == 150
    more.add(-20)
    pieces.add(-70)
    assert answers.bytes.held == 60
    other.add(39)
    answers.wait(STALLED_S / 2)
    more.add(2)
    assert list(errors) == ["call", "pieces", "more"] and answers.bytes.held == 39
    pieces.add(10)
    answers.exit.close()
    assert answers.bytes.held == 0 and not answers.bytes._open


def test_a_part_that_ends_is_forgotten():
    answers = Answers(100)
    with answers.bytes.call("a", lambda _: None) as call:
        with answers.bytes.part("a", lambda _: None) as part:
            part.add(30)
            part.add(-10)
            assert call.held == 20
        assert call.held == 0 and len(call.drops) == 1
        call.add(5)
    assert answers.bytes.held == 0 and not call.drops
    with answers.bytes.part("a", lambda _: None) as alone:
        alone.add(7)
        assert answers.bytes.held == 7, "outside a call it is an answer of its own"
