"""How a service runs."""

import gc
import sys

import pytest

from presift.draft.settings import DraftSettings
from presift.rpc.server import run


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(run.logs, "set_up", lambda level, look, on_drop: None)


def test_garbage_collections_leave_the_modules_out():
    """Once per full collection they stopped the orchestrator's event loop for 0.13 s."""
    collected = []

    async def serve(settings):
        run.freeze_loaded_objects()
        collected.append(len(gc.get_objects()))
        return True

    before = len(gc.get_objects())
    assert run.run("draft", DraftSettings(_cli_parse_args=["--model=m"]), serve) == 0
    assert collected[0] < before / 10 and gc.get_freeze_count() == 0


def test_threads_give_up_the_lock_soon():
    """At 5 ms, calls beside a chat of 16,384 parts began 2.7 times as late as without it."""
    turns, before = [], sys.getswitchinterval()

    async def serve(settings):
        turns.append(sys.getswitchinterval())
        return True

    run.run("draft", DraftSettings(_cli_parse_args=["--model=m"]), serve)
    assert turns[0] <= 0.001 < before == sys.getswitchinterval()
