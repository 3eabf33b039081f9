"""Which parsers a model gets, and what its prompts say about thinking."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerFormat, ToolChoice
from presift.core.errors import InvalidRequest
from presift.core.generation import Grammar, GrammarKind, Sampling
from presift.models.torchvision_ops import declare_missing
from presift.target.engine import GenerateRequest
from presift.target.sglang.answer_parser import ParserNames
from presift.target.sglang.found_parsers import check_names, find, tool_call_parser_of
from presift.target.sglang.messages import AnswerReader, to_sglang
from presift.target.sglang.parsers import Parsers
from presift.target.sglang.tools import tools_of

if find_spec("sglang") is None:
    pytest.skip("needs SGLang", allow_module_level=True)
declare_missing()

REASONING = AnswerFormat(separate_reasoning=True)


def tool(name: str, **others: Any) -> str:
    return json.dumps({"type": "function", "function": {"name": name, "parameters": {"type": "object"}} | others})


class Characters:
    """A tokenizer of code points."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def prompt(text: str) -> Any:
    return np.array(list(map(ord, text)), dtype=np.uint32)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model("tinyc"))


def engine(tokenizer: Any, reasoning: str | None = None, tool_calls: str | None = None, **config: Any) -> Any:
    names = {"tool_call_parser": tool_calls, "reasoning_parser": reasoning}
    templates = (
        SimpleNamespace(force_reasoning=False, reasoning_config=None) if not config else SimpleNamespace(**config)
    )
    manager = SimpleNamespace(tokenizer=tokenizer, config_value=names.get)
    return SimpleNamespace(tokenizer_manager=manager, template_manager=templates)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    check_names("auto", "none")
    check_names("qwen", "qwen3")
    for names, field in ((("typo", "auto"), "tool_call_parser"), (("none", "typo"), "reasoning_parser")):
        with pytest.raises(InvalidRequest, match=r"auto, none, .*qwen") as refusal:
            check_names(*names)
        assert refusal.value.field == field


def test_the_parser_reads_what_the_chat_template_writes(tokenizer: Any) -> None:
    assert tool_call_parser_of(tokenizer) == "qwen"
    assert find(engine(tokenizer), "auto").names == ParserNames("qwen", "")
    assert find(engine(tokenizer), "none").names == ParserNames("", "")
    assert find(engine(tokenizer, "qwen3", "hermes"), "hermes").names == ParserNames("hermes", "qwen3")
    assert find(engine(None), "auto").names == ParserNames("", "")


def test_a_template_without_calls_has_no_parser(tokenizer: Any) -> None:
    class Other:
        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return "|".join(message["content"] for message in messages)

    class Broken:
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            raise ValueError

    assert [tool_call_parser_of(each) for each in (Other(), Broken())] == ["", ""]


TOGGLE = {"effort_kwarg": None, "special_case": None, "toggle_param": "thinking"}
NO, YES = {"thinking": False}, {"thinking": True}
EFFORTS = [({}, False), ({"reasoning_effort": "none"}, False), ({"reasoning_effort": "high"}, True)]


@pytest.mark.parametrize(
    ("name", "config", "cases"),
    [
        ("qwen3", None, [({}, True), ({"enable_thinking": False}, False), ({"enable_thinking": True}, True)]),
        ("deepseek-r1", None, [({}, True), (NO, True)]),
        ("deepseek-v3", None, [({}, False), (YES, True)]),
        ("qwen3", TOGGLE | {"special_case": "always"}, [({}, True), (NO, True)]),
        ("qwen3", TOGGLE | {"default_enabled": False}, [({}, False), (YES, True)]),
        ("qwen3", TOGGLE | {"default_enabled": True}, [({}, True), (NO, False)]),
        ("mistral", None, EFFORTS),
        ("hunyuan", None, EFFORTS),
    ],
)
def test_whether_a_model_thinks_depends_on_the_templates_variables(
    tokenizer: Any, name: str, config: dict[str, Any] | None, cases: list[tuple[dict[str, Any], bool]]
) -> None:
    settings = None if config is None else SimpleNamespace(**config)
    found = find(engine(tokenizer, name, force_reasoning=False, reasoning_config=settings), "none")
    assert [(variables, found.thinks(variables)) for variables, _ in cases] == cases


@pytest.mark.parametrize("habit", [True, False])
@pytest.mark.parametrize(
    ("text", "thinks"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("what is <think>?<|im_end|>\n<|im_start|>assistant\n", None),
        ("</think> so<|im_end|>\n<|im_start|>assistant\n", None),
    ],
)
def test_the_prompts_end_says_whether_the_answer_begins_with_reasoning(
    text: str, thinks: bool | None, habit: bool
) -> None:
    parsers = Parsers(ParserNames("", "qwen3"), Characters(), lambda _: habit)
    assert parsers.is_thinking({}, prompt(text)) is (habit if thinks is None else thinks)
    assert not Parsers(ParserNames(), Characters(), lambda _: habit).is_thinking({}, prompt(text))


def test_a_completion_without_a_format_thinks_only_if_its_prompt_says_so() -> None:
    parsers = Parsers(ParserNames("", "qwen3"), Characters(), lambda _: True)
    assert not parsers.is_thinking(None, prompt("once upon a time"))
    assert parsers.is_thinking(None, prompt("<think>"))


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_variables_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        sent(AnswerFormat(template_kwargs_json=text), ParserNames("", "qwen3"))
    assert refusal.value.field == "format.template_kwargs_json"


def sent(wanted: AnswerFormat | None, names: ParserNames, **sampling: Any) -> Any:
    request = GenerateRequest(prompt("hi"), Sampling(**sampling), format=wanted)
    parsers = Parsers(names, Characters())
    return to_sglang(request, parsers, parsers.prepared(request))


def test_an_auto_choice_is_free_unless_a_tool_is_strict() -> None:
    free = sent(AnswerFormat((tool("a"),)), ParserNames("qwen")).sampling_params
    strict = sent(AnswerFormat((tool("a", strict=True),)), ParserNames("qwen")).sampling_params
    assert "structural_tag" not in free
    assert json.loads(strict["structural_tag"])["at_least_one"] is False
    # The parser reads special tokens.
    assert free["skip_special_tokens"] is False


def test_a_forced_choice_has_the_native_grammar_or_that_of_a_json_array() -> None:
    tools = (tool("a"), tool("b"))
    native = sent(AnswerFormat(tools, ToolChoice.REQUIRED), ParserNames("qwen")).sampling_params
    assert json.loads(native["structural_tag"])["at_least_one"] is True
    for name in ("pythonic", ""):
        array = sent(AnswerFormat(tools, ToolChoice.REQUIRED, single_call=True), ParserNames(name)).sampling_params
        schema = json.loads(array["json_schema"])
        assert (schema["type"], schema["maxItems"]) == ("array", 1)


@pytest.mark.parametrize("single", [True, False])
def test_a_forced_call_of_gpt_oss_is_not_left_out(single: bool) -> None:
    """The tag of SGLang and xgrammar would allow an answer that ends at once."""
    wanted = AnswerFormat((tool("a"),), ToolChoice.REQUIRED, single_call=single)
    form = json.loads(sent(wanted, ParserNames("gpt-oss", "gpt-oss")).sampling_params["structural_tag"])["format"]
    assert (form["type"], form["at_least_one"], form["stop_after_first"]) == ("tags_with_separator", True, single)


@pytest.mark.parametrize(("name", "skipped"), [("mistral", False), ("gpt-oss", False), ("qwen3", True)])
def test_marks_that_are_special_tokens_stay_in_the_text(name: str, skipped: bool) -> None:
    assert sent(REASONING, ParserNames("", name)).sampling_params["skip_special_tokens"] is skipped


def test_the_arguments_of_a_forced_call_follow_the_schema() -> None:
    """SGLang lets those of a tool that is not `strict` be any JSON value, such as a list."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tools = (tool("a", parameters=schema), tool("b", parameters=None))
    for wanted in (AnswerFormat(tools, ToolChoice.REQUIRED), AnswerFormat(tools, ToolChoice.FUNCTION, "a")):
        text = sent(wanted, ParserNames("qwen")).sampling_params["structural_tag"]
        assert '"integer"' in text


def test_a_named_function_is_the_only_one_that_its_grammar_allows() -> None:
    wanted = AnswerFormat((tool("a"), tool("b")), ToolChoice.FUNCTION, "b")
    tag = json.loads(sent(wanted, ParserNames("qwen")).sampling_params["structural_tag"])
    assert ['"b"' in each["begin"] for each in tag["structures"]] == [True]


def test_a_single_call_ends_the_answer() -> None:
    wanted = AnswerFormat((tool("a"),), ToolChoice.REQUIRED, single_call=True)
    form = json.loads(sent(wanted, ParserNames("qwen")).sampling_params["structural_tag"])["format"]
    assert (form["at_least_one"], form["stop_after_first"]) == (True, True)


def test_the_callers_grammar_takes_precedence_over_that_of_an_auto_choice() -> None:
    wanted = AnswerFormat((tool("a", strict=True),))
    both = sent(wanted, ParserNames("qwen"), grammar=Grammar(GrammarKind.REGEX, "x")).sampling_params
    assert (both["regex"], both.get("structural_tag")) == ("x", None)


def test_a_forced_call_that_has_no_grammar_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        sent(AnswerFormat((tool("a"),), ToolChoice.REQUIRED), ParserNames("spark25"))
    assert refusal.value.field == "tool_choice"


def test_tools_whose_schemas_contradict_each_other_are_refused_by_name() -> None:
    schemas = ({"type": "object", "$defs": {"x": {"type": kind}}} for kind in ("string", "integer"))
    tools = tuple(tool(name, parameters=schema) for name, schema in zip("ab", schemas, strict=True))
    with pytest.raises(InvalidRequest) as refusal:
        sent(AnswerFormat(tools, ToolChoice.REQUIRED), ParserNames("pythonic"))
    assert refusal.value.field == "format.tools_json"


def test_the_tools_of_a_request_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[AnswerFormat] = []

    def counted(wanted: AnswerFormat) -> list[Any]:
        checked.append(wanted)
        return tools_of(wanted)

    monkeypatch.setattr("presift.target.sglang.parsers.tools_of", counted)
    request = GenerateRequest(prompt("hi"), format=AnswerFormat((tool("a"),), ToolChoice.REQUIRED))
    parsers = Parsers(ParserNames("qwen"), Characters())
    prepared = parsers.prepared(request)
    assert "structural_tag" in to_sglang(request, parsers, prepared).sampling_params
    AnswerReader(request, parsers, prepared)
    assert checked == [request.format]


def test_the_grammar_begins_after_the_reasoning() -> None:
    def waits(text: str, wanted: AnswerFormat | None) -> bool:
        request = GenerateRequest(prompt(text), Sampling(grammar=Grammar(GrammarKind.REGEX, "x")), format=wanted)
        parsers = Parsers(ParserNames("", "mistral"), Characters(), lambda variables: "reasoning_effort" in variables)
        return bool(to_sglang(request, parsers, parsers.prepared(request)).require_reasoning)

    effort = AnswerFormat(template_kwargs_json='{"reasoning_effort": "high"}')
    assert waits("[THINK]", None)
    # Whether or not the reasoning stays in the text.
    assert waits("hi", effort)
    assert waits("hi", replace(effort, separate_reasoning=True))
    assert not waits("hi", REASONING)
    assert not waits("hi", None)
