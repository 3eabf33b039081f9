"""The check at start believes what the engine does, not what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest

from presift.core.answer import AnswerDelta
from presift.core.errors import TargetUnavailable
from presift.target.engine import Event, Finished, GenerateRequest
from presift.target.sglang_plugin import self_check
from presift.target.sglang_plugin.self_check import why_unsupported

from ....echo_engine import ECHO_MODEL, EchoEngine

Spoil = Callable[[int, Event], Event | None]


class Engine(EchoEngine):
    """An echo that says how its plugin is. `spoil` may change or drop the events of the n-th request."""

    def __init__(self, state: Any = None, spoil: Spoil = lambda _, event: event, **options: Any) -> None:
        super().__init__(**options)
        self.state, self.spoil = state or {}, spoil
        self.requests: list[GenerateRequest] = []
        self.flushed = 0

    async def plugin_state(self) -> dict[str, Any]:
        if isinstance(self.state, Exception):
            raise self.state
        return dict(self.state)

    async def flush(self) -> bool:
        self.flushed += 1
        return True

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        place = len(self.requests)
        async for event in super().generate(request):
            if (spoilt := self.spoil(place, event)) is not None:
                yield spoilt


async def reason_of(engine: Engine, page_tokens: int = 1) -> str | None:
    return await why_unsupported(engine, ECHO_MODEL.vocabulary_size, page_tokens)


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 100])
async def test_an_engine_that_drops_kv_rightly(page_tokens: int) -> None:
    engine = Engine(kv_page_tokens=page_tokens)
    assert await reason_of(engine, page_tokens) is None
    assert engine.flushed == 1
    plans = [request.kv_plan for request in engine.requests]
    assert [plan is None for plan in plans] == [True, True, False, False, False]
    capacities = [plan.policy.capacity for plan in plans if plan]
    assert capacities[0] == 2 * capacities[1] == 2 * capacities[2] == engine.requests[0].token_ids.size - 1
    assert all(capacity % page_tokens == 0 for capacity in capacities)
    assert len({request.cache_salt for request in engine.requests}) == 1 and engine.requests[0].cache_salt


async def test_token_ids_stay_within_a_small_vocabulary() -> None:
    engine = Engine()
    assert await why_unsupported(engine, 32, 1) is None
    assert all(request.token_ids.max() < 32 for request in engine.requests)


async def test_a_plugin_that_refuses_is_believed_at_once() -> None:
    engine = Engine({"unsupported": "SGLang functions not hooked: this"})
    assert await reason_of(engine) == "SGLang functions not hooked: this"
    assert engine.requests == []


def changed(place: int, **values: Any) -> Spoil:
    def spoil(request: int, event: Event) -> Event:
        return replace(event, **values) if request == place and isinstance(event, Finished) else event

    return spoil


def other_tokens(place: int) -> Spoil:
    return lambda request, event: AnswerDelta((9,)) if request == place and isinstance(event, AnswerDelta) else event


FAILURES: dict[str, tuple[Spoil, str]] = {
    "keep-all differs": (other_tokens(3), "with all KV kept, the answer differs from the one without a plan"),
    "keep-all kept less": (changed(3, kv_tokens=65), "65 KV tokens were held, expected 129"),
    "keep-all was ignored": (changed(3, kv_tokens=128), "128 KV tokens were held"),
    "not found again": (changed(5, reused_entry=False), "cached tokens, expected 64"),
    "another entry found": (changed(5, cached_tokens=63), "found 63 cached tokens, expected 64"),
    "another answer": (other_tokens(5), "the same entry gave a different answer"),
    "an early end": (
        lambda _, event: event if isinstance(event, AnswerDelta) else None,
        "the stream ended without a result",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), FAILURES.values(), ids=FAILURES)
async def test_what_the_engine_does_wrong_is_the_reason(spoil: Spoil, reason: str) -> None:
    told = await reason_of(Engine(spoil=spoil))
    assert told is not None
    assert told.startswith("the self-check failed: ")
    assert reason in told


async def test_the_twin_of_keep_all_is_the_prompt_on_cached_kv() -> None:
    """The first answer read it in one go: its arithmetic may differ in the last bit."""
    assert await reason_of(Engine(spoil=other_tokens(1))) is None
    assert await reason_of(Engine(spoil=other_tokens(2))) is not None


@pytest.mark.parametrize("place", [1, 3, 5])
async def test_an_engine_that_fails_is_the_reason(place: int) -> None:
    def spoil(request: int, event: Event) -> Event:
        if request == place:
            raise TargetUnavailable("out of memory")
        return event

    assert await reason_of(Engine(spoil=spoil)) == "the self-check failed: out of memory"


async def test_a_plugin_that_cannot_be_asked_is_the_reason() -> None:
    assert await reason_of(Engine(TargetUnavailable("gone"))) == "the self-check failed: gone"


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), TargetUnavailable("gone")], ids=repr)
async def test_whatever_goes_wrong_is_a_reason_and_never_raised(error: Exception) -> None:
    """The other routes are served all the same."""
    told = "gone" if isinstance(error, TargetUnavailable) else "ZeroDivisionError"
    assert await reason_of(Engine(error)) == f"the self-check failed: {told}"

    class Unflushed(Engine):
        async def flush(self) -> bool:
            raise error

    assert await reason_of(Unflushed()) == f"the self-check failed: {told}"


@pytest.mark.parametrize("hangs_in", ["plugin_state", "generate", "flush"])
async def test_an_engine_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, hangs_in: str) -> None:
    monkeypatch.setattr(self_check, "_TIMEOUT_S", 0.2)

    class Hanging(Engine):
        async def plugin_state(self) -> dict[str, Any]:
            return await self._hang("plugin_state") or await super().plugin_state()

        async def flush(self) -> bool:
            return await self._hang("flush") or await super().flush()

        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
            await self._hang("generate")
            async for event in super().generate(request):
                yield event

        async def _hang(self, where: str) -> Any:
            if where == hangs_in:
                await asyncio.Event().wait()

    async with asyncio.timeout(10):
        reason = await reason_of(Hanging())
    assert reason is not None and "no answer within" in reason
