"""The bytes of answers that are not read: a bound for all and for each tenant, beyond which the largest one ends."""

import asyncio
from contextlib import ExitStack, aclosing
from functools import partial

import pytest

from presift.core.errors import Overloaded
from presift.rpc.client.answer_bytes import AnswerBytes
from presift.rpc.client.stream_reader import Held, buffered


class Answers:
    def __init__(self, limit):
        self.bytes, self.errors, self.exit = AnswerBytes(limit), {}, ExitStack()

    def open(self, name, tenant=None):
        return self.exit.enter_context(self.bytes.waiting(tenant, partial(self.errors.__setitem__, name)))


def test_the_largest_one_ends():
    answers = Answers(100)
    small, large, other = answers.open("small"), answers.open("large"), answers.open("other")
    small.add(20)
    large.add(70)
    other.add(10)
    assert not answers.errors
    other.add(1)
    assert list(answers.errors) == ["large"] and answers.bytes.held == 31
    error = answers.errors["large"]
    assert (error.field, error.value, error.limit) == ("unread_answer_bytes", 101, "<= 100") and error.retry_after_s > 0
    large.add(1000)  # it ends soon
    assert answers.bytes.held == 31
    small.add(-20)
    answers.exit.close()
    assert answers.bytes.held == 0 and not answers.bytes._tenants and not answers.bytes._waiting


def test_a_tenant_that_does_not_read_ends_no_answer_of_another():
    answers = Answers(100)
    mine, others = [answers.open(number, "acme") for number in range(3)], answers.open("other", "other")
    others.add(25)
    for number, each in enumerate(mine):
        each.add(10 + number)
    assert list(answers.errors) == [2]
    error = answers.errors[2]
    assert (error.field, error.value, error.limit) == ("unread_answer_bytes of the tenant", 33, "<= 25")
    assert answers.bytes.held == 25 + 21


def test_an_answer_that_is_larger_than_the_bound_may_wait_alone():
    """Log probabilities of a long prompt are one piece."""
    answers = Answers(100)
    large, other = answers.open("large", "acme"), answers.open("other", "acme")
    large.add(150)
    assert not answers.errors
    other.add(1)
    assert list(answers.errors) == ["large"] and answers.bytes.held == 1


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
    answers = AnswerBytes(100)
    stalled, read = Stream(answers, 9), Stream(answers, 9)
    async with aclosing(stalled.read()) as pieces, aclosing(read.read()) as others:
        assert await anext(pieces) == 0
        await stalled.written.wait()
        assert answers.held == 90, "the piece that is being written counts"
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
