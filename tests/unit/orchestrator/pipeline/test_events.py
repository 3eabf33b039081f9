"""The events of an answer."""

import tracemalloc

import pytest

from presift.core.answer import TokenLogprob, ToolCallDelta
from presift.orchestrator.pipeline.events import Delta, held_bytes, joined


def test_deltas_are_joined():
    deltas = [Delta("a", (1,)), Delta("", (2, 3)), Delta("bc", ())]
    assert list(joined(deltas)) == [Delta("abc", (1, 2, 3))]
    assert list(joined([])) == []


def long_delta(tokens, top):
    ids = tuple(10_000 + number for number in range(tokens))
    logprobs = tuple(
        TokenLogprob(20_000 + number, -number / 7, tuple((30_000 + each, -each / 9) for each in range(top)))
        for number in range(tokens if top else 0)
    )
    call = ToolCallDelta(0, "call", "".join(["na", "me"]), "{" * tokens)
    return Delta("\U0001f600" * tokens, ids, "b" * tokens, (call,), logprobs)


@pytest.mark.parametrize("top", [0, 1, 20])
def test_what_waits_is_counted_as_at_least_its_memory_and_at_most_thrice(top):
    tracemalloc.start()
    delta = long_delta(2000, top)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory <= held_bytes(delta) + 2000 <= 3 * memory


def test_joined_events_count_as_all_of_them():
    events = [long_delta(tokens, top) for tokens, top in ((3, 2), (0, 0), (50, 5))]
    assert sum(map(held_bytes, joined(events))) == sum(map(held_bytes, events)) > 0
