"""An answer's deltas become segments: each begins once, gets its pieces and ends once."""

from presift.core.answer import ToolCallDelta
from presift.orchestrator.api.http.segments import Begun, Ended, Extended, SegmentKind, Segments
from presift.orchestrator.pipeline.events import Delta

REASONING, TEXT, CALL = SegmentKind.REASONING, SegmentKind.TEXT, SegmentKind.TOOL_CALL


def run(*deltas, needs_text=False):
    segments = Segments()
    changes = [change for delta in deltas for change in segments.push(delta)]
    changes += segments.finish(needs_text=needs_text)
    check(changes)
    return [(each.kind, each.text) for each in segments.all], changes


def check(changes):
    """One segment at a time, in order."""
    is_open, pieces = None, {}
    for change in changes:
        at = change.segment.index
        if isinstance(change, Begun):
            assert is_open is None and at == len(pieces)
            is_open, pieces[at] = at, ""
        elif isinstance(change, Extended):
            pieces[at] += change.piece
        else:
            assert isinstance(change, Ended) and is_open == at and pieces[at] == change.segment.text
            is_open = None
    assert is_open is None


def call(index, **values):
    return Delta("", (), tool_calls=(ToolCallDelta(index, **values),))


def test_reasoning_text_and_calls():
    deltas = [
        Delta("", (), "a"),
        Delta("", (), "b"),
        Delta("c", ()),
        call(0, id="1", name="f", arguments="{"),
        call(0, arguments="}"),
    ]
    segments, _ = run(*deltas, call(1, id="2", name="g"), Delta("d", ()))
    assert segments == [(REASONING, "ab"), (TEXT, "c"), (CALL, "{}"), (CALL, ""), (TEXT, "d")]


def test_all_in_one_delta():
    delta = Delta("b", (), "a", (ToolCallDelta(0, "1", "f", "{}"), ToolCallDelta(1, "2", "g", "{}")))
    assert run(delta)[0] == [(REASONING, "a"), (TEXT, "b"), (CALL, "{}"), (CALL, "{}")]


def test_white_space_before_a_call_is_no_text():
    assert run(Delta("\n", ()), Delta("\n", ()), call(0, id="1", name="f"))[0] == [(CALL, "")]
    assert run(Delta("", (), "a"), Delta("\n\n", ()), Delta("b", ()))[0] == [(REASONING, "a"), (TEXT, "\n\nb")]
    assert run(Delta("a\n", ()), Delta("\n", ()), Delta("b", ()))[0] == [(TEXT, "a\n\nb")]


def test_an_answer_of_white_space_is_a_text():
    assert run(Delta(" ", ()), Delta("\n", ()))[0] == [(TEXT, " \n")]


def test_an_empty_answer():
    assert run(Delta("", (1,)))[0] == []
    assert run(Delta("", (1,)), needs_text=True)[0] == [(TEXT, "")]


def test_a_late_piece_belongs_to_its_call():
    segments, _ = run(call(0, id="1", name="f", arguments="{"), call(1, id="2", name="g"))
    assert segments == [(CALL, "{"), (CALL, "")]
