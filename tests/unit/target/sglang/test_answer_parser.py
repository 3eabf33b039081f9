"""The text of an answer becomes content, reasoning and tool calls, wherever it is cut on its way."""

# ruff: noqa: RUF001 - DeepSeek's marks

from __future__ import annotations

import itertools
import json
import re
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.answer import AnswerFormat, ParsedText, ToolChoice
from presift.core.errors import InvalidRequest
from presift.models.torchvision_ops import declare_missing
from presift.target.sglang.answer_parser import AnswerParser, ParserNames, joined
from presift.target.sglang.text_pieces import TextPieces
from presift.target.sglang.tools import tools_of

if find_spec("sglang") is None:
    pytest.skip("needs SGLang", allow_module_level=True)
declare_missing()

PARIS, ROME = {"city": "Paris, [x] <b> é\n", "days": 3}, {"city": "Rome"}


def definition(name: str) -> str:
    # As OpenAI's clients send it, with null for what is not set.
    function = {"name": name, "strict": None, "parameters": {"type": "object", "properties": {"city": {}, "days": {}}}}
    return json.dumps({"type": "function", "function": function})


TOOLS = (definition("get_weather"), definition("search"))
WANTED = AnswerFormat(TOOLS)
FORCED = AnswerFormat(TOOLS, ToolChoice.REQUIRED)


def call(name: str, arguments: dict[str, Any], key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def deepseek(name: str, arguments: dict[str, Any]) -> str:
    body = f"{name}\n```json\n{json.dumps(arguments)}\n```"
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{body}<｜tool▁call▁end｜>"


# (parser, answer, content, calls)
TWO = [("get_weather", PARIS), ("search", ROME)]
WHOLE: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    (
        "qwen",
        f"Sure.\n<tool_call>\n{call(*TWO[0])}\n</tool_call>\n<tool_call>\n{call(*TWO[1])}\n</tool_call>",
        "Sure.\n",
        TWO,
    ),
    ("qwen", f"<tool_call>\n{call('search', {})}\n</tool_call>", "", [("search", {})]),
    # SGLang's streaming parser stops at a call without arguments.
    (
        "qwen",
        f'<tool_call>\n{{"name": "search"}}\n</tool_call>\n<tool_call>\n{call(*TWO[0])}\n</tool_call>',
        "",
        [("search", {}), TWO[0]],
    ),
    ("hermes", f"<tool_call>{call(*TWO[0])}</tool_call><tool_call>{call(*TWO[1])}</tool_call>", "", TWO),
    ("llama3", call("get_weather", PARIS, "parameters"), "", TWO[:1]),
    (
        "llama3",
        f"<|python_tag|>{call('get_weather', ROME, 'parameters')};{call('search', ROME, 'parameters')}",
        "",
        [("get_weather", ROME), ("search", ROME)],
    ),
    ("mistral", f"[TOOL_CALLS] [{call(*TWO[0])}, {call(*TWO[1])}]", "", TWO),
    ("mistral", f"ok [TOOL_CALLS]get_weather[ARGS]{json.dumps(ROME)}", "ok ", [("get_weather", ROME)]),
    (
        "pythonic",
        '[get_weather(city="Paris", days=3), search(city="Rome")]',
        "",
        [("get_weather", {"city": "Paris", "days": 3}), ("search", ROME)],
    ),
    ("deepseekv3", f"Hi<｜tool▁calls▁begin｜>{deepseek(*TWO[0])}\n{deepseek(*TWO[1])}<｜tool▁calls▁end｜>", "Hi", TWO),
]
# Not a call: every character is content.
PLAIN = [
    ("qwen", "a < b <b>x</b> [X] </ <tool_call"),
    ("qwen", f"<tool_call>\n{call('unknown', PARIS)}\n</tool_call> bye"),
    ("qwen", "<tool_call>\n{bad}\n</tool_call>\n<tool_call>\n[1]\n</tool_call>"),
    ("hermes", f"see <tool_call>{call('unknown', PARIS)}</tool_call> bye"),
    ("llama3", '{"a": 1} is JSON, ; and so on'),
    ("mistral", "a [b] c, [TOOL_CALLS]unknown[ARGS]{}"),
    ("pythonic", "see [1] and [2]. [unknown(a=1)]"),
    ("deepseekv3", "```py\nx\n``` <｜tool▁calls▁begin｜>oops"),
]


def parser_of(wanted: AnswerFormat, names: ParserNames, **others: Any) -> AnswerParser:
    return AnswerParser(wanted, names, tools=tools_of(wanted), **others)


def parsed(text: str, cuts: list[int], names: ParserNames, wanted: AnswerFormat, **others: Any) -> ParsedText:
    parser = parser_of(wanted, names, **others)
    places = sorted({0, *(cut % (len(text) + 1) for cut in cuts), len(text)})
    parts = [parser.push(text[begin:end]) for begin, end in itertools.pairwise(places)]
    return joined([*parts, parser.finish()])


def calls_of(answer: ParsedText) -> list[tuple[str, Any]]:
    names: list[str] = []
    arguments: list[str] = []
    for delta in answer.tool_calls:
        if delta.id:
            assert re.fullmatch("call_[0-9a-f]{24}", delta.id)
            assert delta.index == len(names)
            names.append(delta.name)
            arguments.append("")
        arguments[delta.index] += delta.arguments
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


CUTS = st.one_of(st.lists(st.integers(0, 1000), max_size=12), st.just(list(range(1000))))


@pytest.mark.parametrize(("name", "text", "content", "calls"), WHOLE)
@given(cuts=CUTS)
def test_any_cut_gives_the_calls_of_the_whole_text(
    name: str, text: str, content: str, calls: list[tuple[str, Any]], cuts: list[int]
) -> None:
    answer = parsed(text, cuts, ParserNames(name), WANTED)
    assert calls_of(answer) == calls
    assert answer.content.strip() == content.strip()


@pytest.mark.parametrize(("name", "text", "_content", "calls"), WHOLE)
def test_the_calls_are_those_that_sglang_finds_in_the_whole_text(
    name: str, text: str, _content: str, calls: list[tuple[str, Any]]
) -> None:
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    found = FunctionCallParser(tools_of(WANTED), name).parse_non_stream(text)[1]
    assert [(each.name, json.loads(each.parameters)) for each in found] == calls


@pytest.mark.parametrize(("name", "text"), PLAIN)
@given(cuts=CUTS)
def test_what_is_no_call_is_content_to_the_last_character(name: str, text: str, cuts: list[int]) -> None:
    assert parsed(text, cuts, ParserNames(name), WANTED) == ParsedText(text)


@given(cuts=CUTS)
def test_a_malformed_call_after_a_good_one_is_content(cuts: list[int]) -> None:
    bad = "<tool_call>\n{bad}\n</tool_call>"
    answer = parsed(f"<tool_call>\n{call(*TWO[0])}\n</tool_call>\n{bad}", cuts, ParserNames("qwen"), WANTED)
    assert calls_of(answer) == TWO[:1]
    assert bad in answer.content


def test_an_unfinished_call_is_delivered_as_far_as_it_goes() -> None:
    answer = parsed('<tool_call>\n{"name": "search", "arguments": {"city": "Pa', [], ParserNames("qwen"), WANTED)
    assert answer.tool_calls[0].name == "search"
    assert answer.tool_calls[0].arguments.startswith('{"city": "Pa')


def test_arguments_arrive_in_pieces() -> None:
    text = f"<tool_call>\n{call('search', {'city': 'word ' * 200})}\n</tool_call>"
    parser = parser_of(WANTED, ParserNames("qwen"))
    deltas = [delta for place in range(0, len(text), 4) for delta in parser.push(text[place : place + 4]).tool_calls]
    assert len(deltas) > 50
    assert [delta.name for delta in deltas if delta.id] == ["search"]


def test_long_arguments_are_not_read_again_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"<tool_call>\n{call('search', {'city': 'word ' * 4000})}\n</tool_call>"
    parser = parser_of(WANTED, ParserNames("qwen"))
    read, form = [], parser._calls._form
    monkeypatch.setattr(form, "push", lambda piece, push=form.push: read.append(piece) or push(piece))
    answer = joined([*(parser.push(text[place : place + 4]) for place in range(0, len(text), 4)), parser.finish()])
    assert calls_of(answer) == [("search", {"city": "word " * 4000})]
    assert len(read) < len(text) / 10


@pytest.mark.parametrize("space", ["", " ", "\n\n"])
@given(cuts=CUTS)
def test_a_forced_call_is_a_json_array_where_the_family_has_no_grammar(space: str, cuts: list[int]) -> None:
    both = f"{space},{space}".join(call(*each, "parameters") for each in TWO)
    answer = parsed(f"[{space}{both}{space}]", cuts, ParserNames("pythonic"), FORCED)
    assert calls_of(answer) == TWO
    assert answer.content == ""
    assert parsed("[oops", cuts, ParserNames(""), FORCED) == ParsedText("[oops")


@given(cuts=CUTS)
def test_a_forced_call_has_the_native_format_where_the_grammar_does(cuts: list[int]) -> None:
    text = f"<tool_call>\n{call(*TWO[0])}\n</tool_call>"
    assert calls_of(parsed(text, cuts, ParserNames("qwen"), FORCED)) == TWO[:1]


@given(cuts=CUTS)
def test_reasoning_comes_before_the_calls(cuts: list[int]) -> None:
    wanted, names = AnswerFormat(TOOLS, separate_reasoning=True), ParserNames("qwen", "qwen3")
    text = f"I should <b>look</b>.</think>\n\nYes.\n<tool_call>\n{call(*TWO[0])}\n</tool_call>"
    answer = parsed(text, cuts, names, wanted, is_thinking=True)
    assert (answer.reasoning, answer.content.strip()) == ("I should <b>look</b>.", "Yes.")
    assert calls_of(answer) == TWO[:1]
    assert parsed(f"<think>{text}", cuts, names, wanted).reasoning == "I should <b>look</b>."


@given(cuts=CUTS)
def test_an_answer_that_ends_inside_the_reasoning_loses_nothing(cuts: list[int]) -> None:
    wanted, names = AnswerFormat(separate_reasoning=True), ParserNames("", "qwen3")
    assert parsed("I should </thin", cuts, names, wanted, is_thinking=True) == ParsedText("", "I should </thin")
    assert parsed("no reasoning <thi", cuts, names, wanted) == ParsedText("no reasoning <thi")


@pytest.mark.parametrize("method", ["push", "finish", "whole"])
def test_an_exception_of_a_parser_ends_no_answer(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def fails(*_: Any) -> Any:
        raise KeyError

    text = "hello <tool_call>\n{}"
    parser = parser_of(WANTED, ParserNames("qwen"))
    monkeypatch.setattr(parser._calls._form, method, fails)
    assert joined([parser.push(text[:9]), parser.push(text[9:]), parser.finish()]) == ParsedText(text)


def test_an_exception_of_the_reasoning_parser_ends_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(AnswerFormat(separate_reasoning=True), ParserNames("", "qwen3"), is_thinking=True)
    first = parser.push("why ")
    monkeypatch.setattr(parser._reasoning._parser, "parse_stream_chunk", lambda _: 1 / 0)
    assert joined([first, parser.push("not"), parser.finish()]) == ParsedText("not", "why ")


def test_kimis_ids_have_the_number_of_the_call_in_the_conversation() -> None:
    begin, end = "<|tool_calls_section_begin|><|tool_call_begin|>", "<|tool_call_end|><|tool_calls_section_end|>"
    text = f"{begin}functions.search:5<|tool_call_argument_begin|>{json.dumps(ROME)}{end}"
    answer = parsed(text, [], ParserNames("kimi_k2"), WANTED, earlier_calls=5)
    assert [delta.id for delta in answer.tool_calls if delta.id] == ["functions.search:5"]


def test_without_parsers_text_passes_unchanged() -> None:
    assert parsed("a <b", [1, 2, 3], ParserNames(), AnswerFormat(separate_reasoning=True)) == ParsedText("a <b")


@pytest.mark.parametrize("text", ["[]", "{", '{"type": "function"}', '{"function": {"name": "f", "parameters": 3}}'])
def test_a_malformed_tool_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        tools_of(AnswerFormat((TOOLS[0], text)))
    assert refusal.value.field == "format.tools_json[1]"


def test_a_forced_function_must_be_one_of_the_tools() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        tools_of(AnswerFormat(TOOLS, ToolChoice.FUNCTION, "other"))
    assert refusal.value.field == "tool_function"


@given(st.text("<tol_ca>[A] x", max_size=40), CUTS)
def test_pieces_are_the_text(text: str, cuts: list[int]) -> None:
    pieces = TextPieces()
    places = sorted({0, *(cut % (len(text) + 1) for cut in cuts), len(text)})
    found = [piece for begin, end in itertools.pairwise(places) for piece in pieces.push(text[begin:end])]
    assert "".join([*found, *pieces.finish()]) == text
