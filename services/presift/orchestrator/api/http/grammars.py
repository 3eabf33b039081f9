"""What an answer must look like: OpenAI's `response_format`, and the names that SGLang and vLLM have for grammars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from presift.core.errors import InvalidRequest
from presift.core.generation import Grammar, GrammarKind
from presift.orchestrator.api.http.errors import brief
from presift.orchestrator.api.http.schema import Body, ChatBody

# What SGLang's server makes of json_object.
_ANY_OBJECT = '{"type": "object"}'


def grammar_of(body: Body) -> Grammar | None:
    """None if the answer is free. Raises InvalidRequest for two grammars."""
    given = list(_given(body))
    if not given:
        return None
    (parameter, grammar), *others = given
    if others:
        raise InvalidRequest(others[0][0], "given", f"left out: {parameter} restricts the answer already")
    return grammar


def grammar_parameter(body: Body) -> str | None:
    """The parameter that holds the grammar. Never fails: an error may be on its way."""
    try:
        return next((parameter for parameter, _ in _given(body)), None)
    except InvalidRequest:
        return None


def ignores_response_format(body: Body) -> bool:
    """Whether response_format is ignored because a tool must be called. Client libraries send both. SGLang's server
    refuses the pair; here the call wins, and the answer names the ignored parameter."""
    return _forces_call(body) and _format(body) is not None


def _forces_call(body: Body) -> bool:
    return isinstance(body, ChatBody) and body.tool_choice not in (None, "auto", "none")


def _format(body: Body) -> Grammar | None:
    return None if body.response_format is None else _of_format(body.response_format)


def _given(body: Body) -> Iterator[tuple[str, Grammar]]:
    """Each grammar of the body, with its parameter. An empty one restricts nothing, as with SGLang."""
    if (grammar := _format(body)) is not None and not _forces_call(body):
        yield "response_format", grammar
    options = body.presift.sampling
    places: dict[str, Any] = {"json_schema": body.json_schema, "regex": body.regex, "ebnf": body.ebnf}
    for kind in GrammarKind:
        if text := getattr(options, kind.value):
            yield f"presift.sampling.{kind.value}", Grammar(kind, text)
        if text := places.get(kind.value):
            yield kind.value, Grammar(kind, text)
    yield from _of_vllm("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    if (outputs := body.structured_outputs) is not None:
        yield from _of_vllm("structured_outputs.", outputs.json_, outputs.regex, outputs.choice, outputs.grammar)
        if outputs.json_object:
            yield "structured_outputs.json_object", Grammar(GrammarKind.JSON_SCHEMA, _ANY_OBJECT)
        if outputs.structural_tag:
            yield "structured_outputs.structural_tag", Grammar(GrammarKind.STRUCTURAL_TAG, outputs.structural_tag)


def _of_vllm(
    prefix: str, schema: str | None, regex: str | None, choice: list[str] | None, ebnf: str | None
) -> Iterator[tuple[str, Grammar]]:
    if schema:
        yield f"{prefix}json", Grammar(GrammarKind.JSON_SCHEMA, schema)
    if regex:
        yield f"{prefix}regex", Grammar(GrammarKind.REGEX, regex)
    if choice:
        yield f"{prefix}choice", Grammar(GrammarKind.EBNF, "root ::= " + " | ".join(map(_quoted, choice)))
    if ebnf:
        yield f"{prefix}grammar", Grammar(GrammarKind.EBNF, ebnf)


def _quoted(text: str) -> str:
    """As a string of EBNF, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _of_format(wanted: dict[str, Any]) -> Grammar | None:
    kind = wanted.get("type")
    if not wanted or kind == "text":
        return None
    if kind == "json_object":
        schema = wanted.get("schema")  # Together's and Fireworks' form of json_schema
        text = _ANY_OBJECT if schema is None else _schema_text(schema, "response_format.schema")
        return Grammar(GrammarKind.JSON_SCHEMA, text)
    if kind == "json_schema":
        return Grammar(GrammarKind.JSON_SCHEMA, _named_schema(wanted))
    if kind == "structural_tag":
        return Grammar(GrammarKind.STRUCTURAL_TAG, json.dumps(wanted))
    raise InvalidRequest("response_format.type", brief(kind), "text, json_object, json_schema or structural_tag")


def _named_schema(wanted: dict[str, Any]) -> str:
    named = wanted.get("json_schema")
    if named is None and "schema" in wanted:
        return _schema_text(wanted["schema"], "response_format.schema")
    if not isinstance(named, dict):
        raise InvalidRequest("response_format.json_schema", brief(named), "an object with a schema")
    return _schema_text(named.get("schema"), "response_format.json_schema.schema")


def _schema_text(schema: Any, parameter: str) -> str:
    if not isinstance(schema, dict):
        raise InvalidRequest(parameter, "missing" if schema is None else brief(schema), "a JSON schema (an object)")
    return json.dumps(schema)
