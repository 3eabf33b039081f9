"""/openapi.json and /docs: the API as the pydantic models of its bodies describe it. Neither needs a key.

The page is plain HTML, not Swagger UI or Redoc: those load scripts from a network, or are megabytes of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from presift.orchestrator.api.http.messages import schema as messages
from presift.orchestrator.api.http.messages.schema import CountBody, MessagesBody
from presift.orchestrator.api.http.responses import schema as responses
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.schema import ChatBody, CompletionBody
from presift.orchestrator.api.http.tokenizing import DetokenizeBody, TokenizeBody
from presift.orchestrator.api.http.unsupported import NEUTRAL, NOTED, WITHOUT_EFFECT, neutral_values

_SCHEMAS = "#/components/schemas/"
# pydantic's names for the bounds of values that a validator of their own reads.
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "presift": {"type": "object", "description": "reason, field, value and limit, as over gRPC"},
            },
        }
    },
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>presift: HTTP API</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}code{{font-size:.95em}}
table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;vertical-align:top}}
</style><h1>presift: HTTP API</h1><p>{about} As OpenAPI: <a href="openapi.json">openapi.json</a>.</p>{parts}</html>
"""
# The page has no scripts, and could load nothing.
_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_ABOUT = (
    "OpenAI-compatible, with Anthropic's Messages API. Options that neither has a parameter for go under presift. If"
    " the server requires keys, send one as Authorization: Bearer KEY."
)


@dataclass(frozen=True, slots=True)
class DocumentedEndpoint:
    """`path` as in its route, without converters; `body` is None for GET. The last two are the parameters that are
    handled before the body's model sees them."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None = None
    needs_key: bool = True
    without_effect: Collection[str] = WITHOUT_EFFECT | set(NOTED)
    neutral: Mapping[str, Collection[Any]] = field(default_factory=lambda: NEUTRAL)


ENDPOINTS = (
    DocumentedEndpoint(
        "POST", "/v1/chat/completions", "Answer a conversation, whole or as a stream of events.", ChatBody
    ),
    DocumentedEndpoint(
        "POST", "/v1/completions", "Continue a text or token ids, whole or as a stream of events.", CompletionBody
    ),
    DocumentedEndpoint(
        "POST",
        "/v1/responses",
        "OpenAI's Responses API, without stored answers.",
        ResponsesBody,
        without_effect=responses.WITHOUT_EFFECT,
        neutral=responses.NEUTRAL,
    ),
    DocumentedEndpoint(
        "POST",
        "/v1/messages",
        "Anthropic's Messages API. Errors are in its format.",
        MessagesBody,
        without_effect=messages.WITHOUT_EFFECT,
        neutral=messages.NEUTRAL,
    ),
    DocumentedEndpoint(
        "POST",
        "/v1/messages/count_tokens",
        "How many tokens such a prompt has.",
        CountBody,
        without_effect=messages.WITHOUT_EFFECT,
        neutral=messages.NEUTRAL,
    ),
    DocumentedEndpoint(
        "POST",
        "/v1/tokenize",
        "The token ids of a text, or of a chat (`messages`).",
        TokenizeBody,
        without_effect=(),
        neutral={},
    ),
    DocumentedEndpoint(
        "POST", "/v1/detokenize", "The text of token ids.", DetokenizeBody, without_effect=(), neutral={}
    ),
    DocumentedEndpoint("GET", "/v1/models", "The names that requests may give as `model`."),
    DocumentedEndpoint("GET", "/v1/models/{model}", "One of them, with its context length."),
    DocumentedEndpoint(
        "GET",
        "/health",
        "200 while it takes requests; 503 during startup, while draining, or without a reachable target.",
        needs_key=False,
    ),
)


class DocsPages:
    """Both pages, made when they are first asked for."""

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi_document()

    @cached_property
    def _page(self) -> str:
        return html_page(self._document)

    async def document(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html; charset=utf-8", headers=_HEADERS)


def openapi_document() -> dict[str, Any]:
    """The API as OpenAPI 3.1."""
    mode: JsonSchemaMode = "validation"
    bodies = [(endpoint.body, mode) for endpoint in ENDPOINTS if endpoint.body is not None]
    _, definitions = models_json_schema(bodies, ref_template=_SCHEMAS + "{model}")
    schemas = _plain(definitions["$defs"])
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        if endpoint.body is not None:
            known = schemas[endpoint.body.__name__]["properties"]
            known |= {name: schema for name, schema in _other_parameters(endpoint) if name not in known}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "presift", "version": version("presift"), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas | {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def html_page(document: dict[str, Any]) -> str:
    """The document as one page."""
    schemas = document["components"]["schemas"]
    parts: list[str] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            body = operation.get("requestBody")
            if body is not None:
                parts.append(_table(_schema_of(body["content"]["application/json"]["schema"], schemas)))
    shared = (name for name in schemas if not any(body is not None and body.__name__ == name for body in _bodies()))
    for name in shared:
        if "properties" in schemas[name]:
            parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2>{_table(schemas[name])}')
    return _PAGE.format(about=escape(document["info"]["description"]), parts="".join(parts))


def _bodies() -> Iterator[type[BaseModel] | None]:
    return (endpoint.body for endpoint in ENDPOINTS)


def _other_parameters(endpoint: DocumentedEndpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in sorted(endpoint.without_effect):
        yield name, {"description": "accepted, without effect"}
    for name, values in sorted(endpoint.neutral.items()):
        yield (
            name,
            {
                "enum": [*neutral_values(name, values), None],
                "description": "not supported: only values that ask for nothing",
            },
        )


def _operation(endpoint: DocumentedEndpoint) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    operation: dict[str, Any] = {"summary": endpoint.summary}
    if "{" in endpoint.path:
        name = endpoint.path.partition("{")[2].partition("}")[0]
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if endpoint.body is not None:
        schema = {"$ref": _SCHEMAS + endpoint.body.__name__}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if "stream" in endpoint.body.model_fields:
            answer["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}}
    operation["responses"] = {
        "200": {"description": "the answer", "content": answer},
        "default": {"description": "an error, in OpenAI's format", "content": error},
    }
    # `{}`: where the server requires none.
    operation["security"] = [{"key": []}, {}] if endpoint.needs_key else []
    return operation


def _plain(schema: Any) -> Any:
    """Without pydantic's titles and null defaults, and with JSON Schema's names of bounds."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:  # beside it is only a default of many nulls
        return {"$ref": schema["$ref"]}
    kept = {name: value for name, value in schema.items() if not _is_noise(name, value)}
    return {
        _BOUNDS.get(name, name) if not isinstance(value, dict) else name: _plain(value) for name, value in kept.items()
    }


def _is_noise(name: str, value: Any) -> bool:
    return (name == "title" and isinstance(value, str)) or (name == "default" and value is None)


def _schema_of(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schemas[schema["$ref"].removeprefix(_SCHEMAS)]
    return found


def _table(schema: dict[str, Any]) -> str:
    """The properties of an object, one a row."""
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td>{_kind(each)}</td><td>{escape(each.get('description', ''))}</td></tr>"
        for name, each in schema["properties"].items()
    ]
    return f"<table><tr><th>parameter</th><th>value</th><th></th></tr>{''.join(rows)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_SCHEMAS))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"] if each != {"type": "null"})
    if "enum" in schema:
        return " or ".join(escape(json.dumps(each)) for each in schema["enum"])
    if "const" in schema:
        return escape(json.dumps(schema["const"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return escape(kind if isinstance(kind, str) else " or ".join(kind))
