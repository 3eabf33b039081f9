"""The events of an answer."""

from presift.orchestrator.pipeline.events import Delta, joined


def test_deltas_are_joined():
    deltas = [Delta("a", (1,)), Delta("", (2, 3)), Delta("bc", ())]
    assert list(joined(deltas)) == [Delta("abc", (1, 2, 3))]
    assert list(joined([])) == []
