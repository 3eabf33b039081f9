"""Finds the parsers of a model's answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from presift.core.errors import InvalidRequest
from presift.target.sglang.answer_parser import ParserNames
from presift.target.sglang.parsers import Parsers

AUTO = "auto"
NONE = "none"

# SGLang's modules are heavy, and loaded by the time that the engine has started.
# ruff: noqa: PLC0415

log = logging.getLogger(__name__)

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_ARGUMENTS = {"city": "Paris"}


def check_names(tool_calls: str, reasoning: str) -> None:
    """Raises InvalidRequest, with the known names, for a parser that SGLang does not have."""
    from sglang.srt.function_call.parser_names import TOOL_CALL_PARSER_NAMES
    from sglang.srt.parser.reasoning_parser_names import REASONING_PARSER_NAMES

    for field, name, known in (
        ("tool_call_parser", tool_calls, TOOL_CALL_PARSER_NAMES),
        ("reasoning_parser", reasoning, REASONING_PARSER_NAMES),
    ):
        if name not in (AUTO, NONE, *known):
            raise InvalidRequest(field, name, f"one of {', '.join((AUTO, NONE, *sorted(known)))}")


def find(engine: Any, tool_calls: str) -> Parsers:
    """The parsers of a started `sglang.Engine`; `tool_calls` is the setting. An engine without a tokenizer has none."""
    manager, templates = engine.tokenizer_manager, engine.template_manager
    tokenizer = manager.tokenizer
    if tokenizer is None:
        return Parsers()
    name = manager.config_value("tool_call_parser") or ""
    if not name and tool_calls == AUTO:
        name = tool_call_parser_of(tokenizer)
    names = ParserNames(name, manager.config_value("reasoning_parser") or "")
    if not names.reasoning:
        return Parsers(names, tokenizer)
    return Parsers(names, tokenizer, _thinks(names.reasoning, tokenizer, templates))


def tool_call_parser_of(tokenizer: Any) -> str:
    """The first of SGLang's parsers that reads a call as the chat template writes it; empty if none does.

    SGLang recognizes some templates by their text; this finds the parsers of the others, such as Qwen2.5's.
    """
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    answer = _rendered_call(tokenizer)
    return next((name for name in FunctionCallParser.ToolCallParserEnum if answer and _reads(name, answer)), "")


def _rendered_call(tokenizer: Any) -> str:
    """The text of an answer that calls a tool, by the chat template; empty if it cannot render one."""
    question = [{"role": "user", "content": "How is the weather in Paris?"}]
    call = {"type": "function", "id": "abcdefgh1", "function": {"name": "get_weather", "arguments": _ARGUMENTS}}
    messages = [*question, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        before = tokenizer.apply_chat_template(question, tools=[_TOOL], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tools=[_TOOL], tokenize=False)
    except Exception as error:
        log.info("the chat template renders no tool call: %s", type(error).__name__)
        return ""
    return str(whole).removeprefix(str(before)) if str(whole).startswith(str(before)) else ""


def _reads(name: str, answer: str) -> bool:
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    try:
        _, calls = FunctionCallParser([Tool.model_validate(_TOOL)], name).parse_non_stream(answer)
        return [(call.name, json.loads(call.parameters)) for call in calls] == [("get_weather", _ARGUMENTS)]
    except Exception:
        return False


def _thinks(name: str, tokenizer: Any, templates: Any) -> Callable[[Mapping[str, Any]], bool]:
    """Whether the model begins an answer with reasoning, as SGLang's server decides by the template's variables."""
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    detector = ReasoningParser(name, tokenizer=tokenizer).detector
    server = SimpleNamespace(reasoning_parser=name, template_manager=templates, _reasoning_detector=detector)

    def thinks(variables: Mapping[str, Any]) -> bool:
        effort = variables.get("reasoning_effort")
        request: Any = SimpleNamespace(chat_template_kwargs=dict(variables), reasoning_effort=effort)
        return bool(templates.force_reasoning or OpenAIServingChat._get_reasoning_from_request(server, request))

    return thinks
