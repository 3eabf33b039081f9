"""At start the engine waits for the plugin's own check, and for an empty radix cache."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from presift.core.errors import TargetUnavailable
from presift.target.sglang import kv_dropping
from presift.target.sglang.kv_dropping import of_all, why_unsupported


class Engine:
    """Gives the next of `states` and of `flushes` at each call, the last one for ever. "hang" never answers."""

    def __init__(self, *states: Any, flushes: tuple[Any, ...] = (True,)) -> None:
        self.states, self.flushes = list(states or [{}]), list(flushes)
        self.flushed = 0

    async def plugin_state(self) -> dict[str, Any]:
        return dict(await self._next(self.states))

    async def flush(self) -> bool:
        self.flushed += 1
        return bool(await self._next(self.flushes))

    async def _next(self, answers: list[Any]) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "hang":
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_dropping, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(kv_dropping, "_INTERVAL_S", 0.01)


CHECKING = {"checking": True, "unsupported": "the self-check is running"}


async def test_a_check_that_passes_is_waited_for_and_its_entries_are_dropped() -> None:
    engine = Engine(CHECKING, CHECKING, {"checking": False, "unsupported": None}, flushes=(False, False, True))
    assert await why_unsupported(engine) is None
    assert engine.flushed == 3


async def test_a_plugin_that_refuses_is_believed() -> None:
    engine = Engine(CHECKING, {"checking": False, "unsupported": "speculative decoding"})
    assert await why_unsupported(engine) == "speculative decoding"
    assert engine.flushed == 0


async def test_a_cache_that_cannot_be_emptied_is_a_reason() -> None:
    told = await why_unsupported(Engine(flushes=(False,)))
    assert told == "the self-check failed: no empty radix cache within 0 s"


@pytest.mark.parametrize("engine", [Engine(CHECKING), Engine("hang"), Engine(flushes=("hang",))], ids=["runs", "", ""])
async def test_an_engine_that_never_answers_is_not_waited_for(engine: Engine) -> None:
    async with asyncio.timeout(10):
        told = await why_unsupported(engine)
    assert told is not None and "within" in told


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), TargetUnavailable("gone")], ids=repr)
async def test_whatever_goes_wrong_is_a_reason_and_never_raised(error: Exception) -> None:
    """The other routes are served all the same."""
    told = "gone" if isinstance(error, TargetUnavailable) else "ZeroDivisionError"
    for engine in (Engine(error), Engine(flushes=(error,))):
        assert await why_unsupported(engine) == f"the self-check failed: {told}"


def test_the_states_of_model_replicas_are_one() -> None:
    one = {
        "unsupported": None,
        "checking": False,
        "ranks_agree": True,
        "runs": 1,
        "free_slots": 10,
        "page_tokens": 1,
        "pool_tokens": 64,
    }
    other = one | {"runs": 2, "free_slots": 20}
    assert of_all([one]) == one
    assert of_all([one, other]) == one | {"runs": 3, "free_slots": 30}
    for name, value in (("unsupported", "LoRA"), ("checking", True), ("ranks_agree", False)):
        assert of_all([one, other | {name: value}])[name] == of_all([one | {name: value}, other])[name] == value
    not_loaded = {"unsupported": "the plugin is not loaded"}
    assert (
        of_all([not_loaded, one])["unsupported"]
        == of_all([one, not_loaded])["unsupported"]
        == "the plugin is not loaded"
    )
