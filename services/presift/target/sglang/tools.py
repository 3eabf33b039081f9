"""The tools of a request as SGLang's values."""

from __future__ import annotations

import json
from typing import Any

from presift.core.answer import AnswerFormat, ToolChoice
from presift.core.errors import InvalidRequest

# SGLang's modules are heavy, and loaded by the time that a request arrives.
# ruff: noqa: PLC0415

_FIELD = "format.tools_json"
_DEFINITION = 'a function: {"type": "function", "function": {"name": ..., "parameters": ...}}'


def tools_of(wanted: AnswerFormat) -> list[Any]:
    """SGLang's `Tool`s. Raises InvalidRequest for a malformed definition, or a forced function that is not there."""
    tools = [_tool(number, text) for number, text in enumerate(wanted.tools_json)]
    if wanted.tool_choice is ToolChoice.FUNCTION and wanted.function not in {tool.function.name for tool in tools}:
        raise InvalidRequest("tool_function", wanted.function[:64], "the name of one of the tools")
    return tools


def bound_to_schema(tool: Any) -> Any:
    """The tool with arguments that follow its schema. In a forced call SGLang allows any JSON value unless a tool is
    `strict`: a small model writes a list, which no client can pass to a function."""
    parameters = tool.function.parameters or {"type": "object", "properties": {}}
    return tool.model_copy(
        update={"function": tool.function.model_copy(update={"strict": True, "parameters": parameters})}
    )


def choice_of(wanted: AnswerFormat) -> Any:
    """SGLang's `tool_choice`."""
    if wanted.tool_choice is not ToolChoice.FUNCTION:
        return wanted.tool_choice.value
    from sglang.srt.entrypoints.openai.protocol import ToolChoice as Choice
    from sglang.srt.entrypoints.openai.protocol import ToolChoiceFuncName

    return Choice(function=ToolChoiceFuncName(name=wanted.function))


def _tool(number: int, text: str) -> Any:
    from pydantic import ValidationError
    from sglang.srt.entrypoints.openai.protocol import Tool

    try:
        values = json.loads(text)
        function = values.get("function", values)
        # OpenAI's clients send null for what is not set.
        function = {name: value for name, value in function.items() if value is not None}
        tool = Tool.model_validate({"type": values.get("type") or "function", "function": function})
    except (ValueError, AttributeError, RecursionError, ValidationError) as error:
        raise InvalidRequest(f"{_FIELD}[{number}]", "malformed", _DEFINITION) from error
    _check_schema(number, tool.function.parameters)
    return tool


def _check_schema(number: int, schema: Any) -> None:
    from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
    from sglang.srt.function_call.utils import normalize_json_schema_types

    if schema is None:
        return
    try:
        normalize_json_schema_types(schema)
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        reason = f": {error.message[:200]}" if isinstance(error, SchemaError) else ""
        message = f"{_FIELD}[{number}] has parameters that are no JSON schema{reason}"
        raise InvalidRequest(f"{_FIELD}[{number}]", "malformed parameters", "a JSON schema", message) from error
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{_FIELD}[{number}]", "malformed parameters", "an object as JSON schema")
