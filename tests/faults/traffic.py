"""Callers, what they ask, and what every answer must be: worked out by hand from the prompt, token by token."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from presift_client import AsyncClient, Decision, Delta, PresiftError, Usage

VOCABULARY = 512
HEAD_TOKENS, WINDOW = 4, 8  # protected at the start, kept at the end
NEW_TOKENS = 30  # more than any mask keeps: an answer says every token that was read
ROUTES = ("full", "spec_pc", "spec_kv", "spec_kv_pc", "auto")
_MASKED = ("spec_pc", "spec_kv_pc")
FALLBACKS = ("draft_unavailable", "draft_timeout", "draft_overloaded", "draft_changed", "mask_rejected")
_THINKING_S = 0.5
DEADLINES_S = (5.0, 8.0, 12.0)  # a shared machine is slow at times; that is no failure


def prompt_of(number: int) -> list[int]:
    """Token ids of the prompt of that number. No two begin alike, and none has the echo engine's EOS, 0."""
    draw = np.random.default_rng(number)
    head = [1 + (number // 500**digit) % 500 for digit in range(HEAD_TOKENS)]
    return head + draw.integers(1, VOCABULARY, 250 + number * 37 % 400).tolist()


@dataclass(frozen=True, slots=True)
class Question:
    """What one call asks. `leave_after` events the caller goes; None: it stays to the end."""

    number: int
    route: str
    deadline_s: float
    leave_after: int | None = None

    @property
    def token_ids(self) -> list[int]:
        return prompt_of(self.number)


Answer = Callable[[Sequence[int], int], list[int]]


def echo(read: Sequence[int], tokens: int) -> list[int]:
    """What the echo engine answers."""
    return [read[place % len(read)] for place in range(tokens)]


class Oracle:
    """The tokens that the target is to read, by prompt and route: asked of Explain while nothing was wrong yet.

    Explain asks the draft, past the cache. What is not known is held against the rules alone. `answer` says what the
    target answers to what it reads: so many tokens.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        self._kept: dict[tuple[int, str], list[int]] = {}
        self._answer = answer or echo

    async def learn(self, client: AsyncClient, numbers: Sequence[int], routes: Sequence[str] = _MASKED) -> None:
        """What is kept of these prompts on these routes."""
        for number in numbers:
            ids = prompt_of(number)
            self.expect(ids)
            for route in routes:
                explained = await client.explain(token_ids=ids, protected_spans=[(0, HEAD_TOKENS)], route=route)
                assert explained.decision.route == route, explained.decision
                spans = [ids[span.start : span.end] for span in explained.spans if span.kept]
                self._kept[number, route] = [token for span in spans for token in span]
                self.expect(self._kept[number, route])

    def expect(self, read: Sequence[int]) -> None:
        """Work the answer to these tokens out now."""
        self._answer(read, NEW_TOKENS)

    def fault_of(self, question: Question, heard: Heard) -> str:
        """What is wrong about what was heard; empty where all is right. A broken answer must be the start of one."""
        decision, ids = heard.decision, question.token_ids
        if decision is None:
            return "tokens before a decision" if heard.tokens else ""
        if decision.prompt_tokens != len(ids):
            return f"a decision about {decision.prompt_tokens} tokens of {len(ids)}"
        if (fault := _fault_of_route(question.route, decision)) or not heard.tokens:
            return fault
        if heard.usage is not None and len(heard.tokens) != NEW_TOKENS:
            return f"{len(heard.tokens)} tokens of {NEW_TOKENS}"
        return self._fault_of_tokens(question, decision, heard)

    def _fault_of_tokens(self, question: Question, decision: Decision, heard: Heard) -> str:
        ids, read = question.token_ids, self._kept.get((question.number, decision.route))
        if decision.route not in _MASKED:
            read = ids
        if read is None:
            return _fault_of_unknown(ids, heard.tokens, decision.kept_tokens)
        if decision.kept_tokens != len(read):
            return f"{decision.kept_tokens} tokens kept instead of {len(read)}"
        return (
            ""
            if heard.tokens == self._answer(read, len(heard.tokens))
            else f"other tokens than those of the prompt on {decision.route}"
        )


def _fault_of_route(asked: str, decision: Decision) -> str:
    fell_back = decision.route == "full" and decision.reason in FALLBACKS
    if asked in ("auto", decision.route) or fell_back:
        return ""
    return f"route {decision.route} ({decision.reason}) for {asked}"


def _fault_of_unknown(ids: list[int], tokens: list[int], kept_tokens: int) -> str:
    """A mask that nobody knows keeps the head, the window, and an order."""
    first = tokens[:kept_tokens]
    rest = iter(ids)
    if not all(token in rest for token in first):
        return "tokens that are not of the prompt, in its order"
    if first[:HEAD_TOKENS] != ids[:HEAD_TOKENS][: len(first)]:
        return "the protected head is not there"
    return "" if len(first) < kept_tokens or first[-WINDOW:] == ids[-WINDOW:] else "the window is not there"


@dataclass(slots=True)
class Heard:
    """What came of one call."""

    decision: Decision | None = None
    usage: Usage | None = None
    tokens: list[int] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call, done: times of `time.monotonic` in seconds, `error` the type or empty, `fault` what was wrong."""

    caller: int
    question: Question
    began_s: float
    ended_s: float
    error: str
    fallback: str
    fault: str

    @property
    def is_well(self) -> bool:
        """Answered, and not in full because there was no draft."""
        return not (self.error or self.fallback or self.fault)

    @property
    def late_s(self) -> float:
        """How long after its deadline it ended; 0 if before."""
        return max(0.0, self.ended_s - self.began_s - self.question.deadline_s)


@dataclass(slots=True)
class Book:
    """All calls of a time."""

    calls: list[Call] = field(default_factory=list)

    @property
    def errors(self) -> Counter[str]:
        return Counter(call.error for call in self.calls if call.error)

    @property
    def fallbacks(self) -> Counter[str]:
        return Counter(call.fallback for call in self.calls if call.fallback)

    @property
    def faults(self) -> Counter[str]:
        return Counter(call.fault for call in self.calls if call.fault)

    @property
    def latest_s(self) -> float:
        """By how much the latest call overran its deadline."""
        return max((call.late_s for call in self.calls), default=0.0)

    def since(self, moment_s: float) -> Book:
        """The calls that began then or later."""
        return Book([call for call in self.calls if call.began_s >= moment_s])


async def ask(client: AsyncClient, oracle: Oracle, question: Question, caller: int = 0) -> Call:
    """One call, whatever comes of it. Only what is no error of ours is raised."""
    heard, began_s = Heard(), time.monotonic()
    try:
        await _listen(client, question, heard)
    except PresiftError as error:
        heard.error = type(error).__name__
    ended_s, decision = time.monotonic(), heard.decision
    fallback = decision.reason if decision is not None and decision.reason in FALLBACKS else ""
    fault = oracle.fault_of(question, heard)
    if not (heard.error or heard.usage or question.leave_after):
        fault = fault or "neither an error nor an end"
    return Call(caller, question, began_s, ended_s, heard.error, fallback, fault)


async def _listen(client: AsyncClient, question: Question, heard: Heard) -> None:
    stream = client.stream(
        token_ids=question.token_ids,
        protected_spans=[(0, HEAD_TOKENS)],
        route=question.route,
        max_new_tokens=NEW_TOKENS,
        ignore_eos=True,
        deadline_s=question.deadline_s,
    )
    left = question.leave_after
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Decision):
                heard.decision = event
            elif isinstance(event, Delta):
                heard.tokens.extend(event.token_ids)
            else:
                heard.usage = event
            left = None if left is None else left - 1
            if left == 0:
                return


class Crowd:
    """So many callers at once, each at one of the addresses, asking one thing after another."""

    def __init__(
        self,
        addresses: Sequence[str],
        oracle: Oracle,
        numbers: Sequence[int],
        callers: int = 20,
        routes: Sequence[str] = ROUTES,
    ) -> None:
        self._addresses = addresses
        self._oracle = oracle
        self._numbers = numbers
        self._routes = routes
        self.callers = callers

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Book]:
        """They ask until the block ends; calls that are under way then are finished first."""
        book, over = Book(), asyncio.Event()
        asking = [asyncio.create_task(self._one(caller, book, over)) for caller in range(self.callers)]
        try:
            yield book
        finally:
            over.set()
            await asyncio.gather(*asking)

    async def _one(self, caller: int, book: Book, over: asyncio.Event) -> None:
        questions = self.questions(random.Random(caller))
        async with AsyncClient(self._addresses[caller % len(self._addresses)]) as client:
            while not over.is_set():
                book.calls.append(await ask(client, self._oracle, next(questions), caller))
                await asyncio.sleep(_THINKING_S)

    def questions(self, draw: random.Random) -> Iterator[Question]:
        """Mixed routes, prompts and deadlines, for ever."""
        while True:
            yield Question(draw.choice(self._numbers), draw.choice(self._routes), draw.choice(DEADLINES_S))


def leaving(question: Question, draw: random.Random) -> Question:
    """The same as a restless caller asks it: it leaves early, or gives no time."""
    if draw.random() < 0.5:
        return replace(question, leave_after=draw.randrange(1, 20))
    return replace(question, deadline_s=draw.choice((0.01, 0.05, 0.1)))
