"""A request at its limit for each row of the tables of limits, and for each other limit on what a request holds.

`TABLES` are found in the packages, so that a row of a new table has no sender until one is written here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf.message import Message

import presift
from presift.core import limits as core_limits
from presift.core.limits import Limit
from presift.draft import limits as draft_limits
from presift.orchestrator.api.http import body, repeated_prompts, requests
from presift.orchestrator.domain import limits as domain_limits
from presift.orchestrator.domain import request as domain_request
from presift.rpc import limits as rpc_limits
from presift.rpc.server import field_count
from presift.target import limits as target_limits
from presift.v1 import draft_pb2, orchestrator_pb2, plan_pb2, target_pb2

from .bare_stack import DRAFT_CONTEXT, KV_HEADS, LAYERS, LETTER

GENERATE, EXPLAIN = "OrchestratorService/Generate", "OrchestratorService/Explain"
SCORE, ANSWER, PREFILL = "DraftService/Score", "TargetService/Generate", "TargetService/Prefill"
HTTP = "HTTP"

STALL_S = 0.1
FIXED_BYTES = 64 * 2**20
# Measured: 70 of a text that is tokenized, of which all but 8 are the tokenizer's.
BYTES_PER_BYTE = 96
# Measured: 830 of a token that becomes a span, in memory and as a message.
_BYTES_PER_SPAN = 1200
# Measured: a token id of 4 bytes takes 128 in each of 128 choices.
_BYTES_PER_REPEATED = 4096

Row = tuple[str, str]
Table = tuple[Limit, ...]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One request: `make` returns the message, or the path and the body over HTTP. `outcome` is "answered", or the
    reason of the refusal where the request is valid but for this. `most` is the limit; `metadata` goes with it. For
    each byte that arrives the service may hold `bytes_per_byte` at its peak, beside FIXED_BYTES. Its event loop may
    stand still for `stall_s` seconds of processor time."""

    name: str
    method: str
    most: int
    make: Callable[[], Message | Values]
    outcome: str = "answered"
    metadata: tuple[tuple[str, str], ...] = ()
    bytes_per_byte: int = BYTES_PER_BYTE
    stall_s: float = STALL_S

    @property
    def service(self) -> str:
        """draft, target or orchestrator."""
        return "orchestrator" if self.method == HTTP else self.method.partition("Service/")[0].lower()


def limit_modules() -> Iterator[ModuleType]:
    """Every module of presift that is named `limits`."""
    for found in pkgutil.walk_packages(presift.__path__, "presift."):
        if found.name.endswith(".limits"):
            yield importlib.import_module(found.name)


def tables() -> dict[str, Table]:
    """The tables of limits by name. A table that a module has from another one counts once."""
    found: dict[str, Table] = {}
    for module in limit_modules():
        for name, value in vars(module).items():
            is_table = isinstance(value, tuple) and value and all(isinstance(each, Limit) for each in value)
            if is_table and not any(value is known for known in found.values()):
                found[f"{module.__name__.removeprefix('presift.')}.{name}"] = value
    return found


def numbers() -> set[str]:
    """The names `MAX_...` in those modules that are the limit of no row."""
    modules = list(limit_modules())
    calls = [call for module in modules for call in ast.walk(ast.parse(inspect.getsource(module)))]
    named = {
        call.args[1].id
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Limit"
        if isinstance(call.args[1], ast.Name)
    }
    return {name for module in modules for name in vars(module) if name.startswith("MAX_")} - named


# --- over gRPC, to the orchestrator: the fields of a GenerateRequest


def _prompt(**values: Any) -> Values:
    return {"prompt": orchestrator_pb2.Prompt(**values)}


def _chat(**values: Any) -> Values:
    return _prompt(chat=orchestrator_pb2.Chat(**{"messages": [_message("a")]} | values))


def _message(*texts: str) -> orchestrator_pb2.Message:
    return orchestrator_pb2.Message(role="user", parts=[orchestrator_pb2.TextPart(text=text) for text in texts])


def _ids(count: int) -> orchestrator_pb2.TokenIds:
    return orchestrator_pb2.TokenIds(ids=[LETTER] * count)


def _every_other(count: int) -> list[plan_pb2.Span]:
    """So many spans that do not touch."""
    return [plan_pb2.Span(start=2 * number, end=2 * number + 1) for number in range(count)]


def _called(*calls: str) -> Values:
    assistant = orchestrator_pb2.Message(role="assistant", tool_calls_json=calls)
    return _chat(messages=[assistant, _message("a")])


def _filled(pattern: str, characters: int) -> str:
    """`pattern` with so many letters for its # that all has this length."""
    return pattern.replace("#", "a" * (characters - len(pattern) + 1))


_TOOL = '{"type": "function", "function": {"name": "f", "description": "#"}}'
_SMALL_TOOL = '{"type": "function", "function": {"name": "f"}}'
_CALL = '{"type": "function", "function": {"name": "f", "arguments": {"text": "#"}}}'

PROMPTS: Mapping[Row, Callable[[int], Values]] = {
    ("prompt.token_ids", "tokens"): lambda n: _prompt(token_ids=_ids(n)),
    ("prompt.protected_spans", "spans"): lambda n: _prompt(token_ids=_ids(2 * n), protected_spans=_every_other(n)),
    ("prompt.text", "characters"): lambda n: _prompt(text="a" * n),
    ("prompt.chat.messages", "messages"): lambda n: _chat(messages=[_message("a")] * n),
    ("prompt.chat.messages.parts", "parts"): lambda n: _chat(messages=[_message(*"a" * n)]),
    ("prompt.chat", "characters"): lambda n: _chat(messages=[_message("a" * (n - len("user")))]),
    ("prompt.chat.tools_json", "tools"): lambda n: _chat(tools_json=[_SMALL_TOOL] * n),
    ("prompt.chat.tools_json", "characters"): lambda n: _chat(tools_json=[_filled(_TOOL, n)]),
    ("prompt.chat.template_kwargs_json", "characters"): lambda n: _chat(
        template_kwargs_json=_filled('{"note": "#"}', n)
    ),
    ("prompt.chat.messages.tool_calls_json", "calls"): lambda n: _called(*[_filled(_CALL, 96)] * n),
    ("prompt.chat.messages.tool_calls_json", "characters"): lambda n: _called(_filled(_CALL, n)),
}
# An answer of letters stops nowhere, and holds back as much of its text as it can.
_ANSWER_TOKENS = 512
SAMPLINGS: Mapping[Row, Callable[[int], Values]] = {
    ("sampling.stop", "strings"): lambda n: {"stop": ["a" * 64 + "b"] * n, "max_new_tokens": _ANSWER_TOKENS},
    ("sampling.stop", "characters"): lambda n: {
        "stop": ["a" * (n - 1) + "b"] * core_limits.MAX_STOP_STRINGS,
        "max_new_tokens": _ANSWER_TOKENS,
    },
    ("sampling.stop_token_ids", "token ids"): lambda n: {"stop_token_ids": range(512, 512 + n)},
    ("sampling.logit_bias", "token ids"): lambda n: {"logit_bias": dict.fromkeys(range(n), 1.0)},
}


def _generate(values: Values) -> orchestrator_pb2.GenerateRequest:
    sampling = target_pb2.Sampling(**{"max_new_tokens": 1} | values.pop("sampling", {}))
    return orchestrator_pb2.GenerateRequest(**_prompt(token_ids=_ids(256)) | values, sampling=sampling)


# --- over HTTP: the same as a body; "path" is the endpoint


def _completion(**values: Any) -> Values:
    return {"path": "/v1/completions", "prompt": [LETTER] * 256, "max_tokens": 1} | values


def _chat_body(**values: Any) -> Values:
    return {"path": "/v1/chat/completions", "messages": [_user("a")], "max_tokens": 1} | values


def _user(content: Any) -> Values:
    return {"role": "user", "content": content}


def _tool(described: str | None) -> Values:
    function = {"name": "f"} if described is None else {"name": "f", "description": described}
    return {"type": "function", "function": function}


def _called_body(*arguments: str) -> Values:
    calls = [{"type": "function", "function": {"name": "f", "arguments": each}} for each in arguments]
    return _chat_body(messages=[{"role": "assistant", "tool_calls": calls}, _user("a")])


def _body_of_tool(characters: int) -> Values:
    return _chat_body(tools=[_tool("a" * (characters - len(json.dumps(_tool("")))))])


def _body_of_call(characters: int) -> Values:
    (call,) = _called_body('{"text": ""}')["messages"][0]["tool_calls"]
    return _called_body('{"text": "%s"}' % ("a" * (characters - len(json.dumps(call)))))


BODIES: Mapping[Row, Callable[[int], Values]] = {
    ("prompt.token_ids", "tokens"): lambda n: _completion(prompt=[LETTER] * n),
    ("prompt.protected_spans", "spans"): lambda n: _completion(
        prompt=[LETTER] * 2 * n,
        presift={"protected_spans": [{"start": 2 * number, "end": 2 * number + 1} for number in range(n)]},
    ),
    ("prompt.text", "characters"): lambda n: _completion(prompt="a" * n),
    ("prompt.chat.messages", "messages"): lambda n: _chat_body(messages=[_user("a")] * n),
    ("prompt.chat.messages.parts", "parts"): lambda n: _chat_body(
        messages=[_user([{"type": "text", "text": "a"}] * n)]
    ),
    ("prompt.chat", "characters"): lambda n: _chat_body(messages=[_user("a" * (n - len("user")))]),
    ("prompt.chat.tools_json", "tools"): lambda n: _chat_body(tools=[_tool(None)] * n),
    ("prompt.chat.tools_json", "characters"): _body_of_tool,
    ("prompt.chat.template_kwargs_json", "characters"): lambda n: _chat_body(
        chat_template_kwargs={"note": "a" * (n - len('{"note": ""}'))}
    ),
    ("prompt.chat.messages.tool_calls_json", "calls"): lambda n: _called_body(*['{"text": "a"}'] * n),
    ("prompt.chat.messages.tool_calls_json", "characters"): _body_of_call,
    ("sampling.stop", "strings"): lambda n: _completion(stop=["a" * 64 + "b"] * n, max_tokens=_ANSWER_TOKENS),
    ("sampling.stop", "characters"): lambda n: _completion(
        stop=["a" * (n - 1) + "b"] * core_limits.MAX_STOP_STRINGS, max_tokens=_ANSWER_TOKENS
    ),
    ("sampling.stop_token_ids", "token ids"): lambda n: _completion(stop_token_ids=list(range(512, 512 + n))),
    ("sampling.logit_bias", "token ids"): lambda n: _completion(logit_bias=dict.fromkeys(map(str, range(n)), 1.0)),
}

# --- to draft and target

_POLICY = plan_pb2.Policy(spec_pc=plan_pb2.SpecPc(capacity=64, window=8, start_layer=0))
SCORES: Mapping[Row, Callable[[int], Values]] = {
    ("token_ids", "tokens"): lambda n: {"token_ids": [LETTER] * n},
    ("cache_salt", "characters"): lambda n: {"cache_salt": "x" * n},
    ("protected_spans", "spans"): lambda n: {"protected_spans": [plan_pb2.Span(start=0, end=1)] * n},
}
PREFILLS: Mapping[Row, Callable[[int], Values]] = {
    ("token_ids", "tokens"): lambda n: {"token_ids": [LETTER] * n},
    ("cache_salt", "characters"): lambda n: {"cache_salt": "x" * n},
}


def _plan(prompt_tokens: int, capacity: int, policy: Values | None = None, **values: Any) -> Values:
    wanted = plan_pb2.SpecKv(capacity=capacity, window=8, **policy or {})
    return {"token_ids": [LETTER] * prompt_tokens, "kv_plan": target_pb2.KvPlan(policy=wanted, **values)}


def _masked(size: int) -> Values:
    """A mask of `size` bytes that keeps the first and the last tokens in every layer and head."""
    tokens, kept = size * 8 // (LAYERS * KV_HEADS), np.zeros(size * 8 // (LAYERS * KV_HEADS), dtype=np.bool_)
    kept[:64] = kept[-64:] = True
    bits = np.packbits(kept, bitorder="little").tobytes() * (LAYERS * KV_HEADS)
    mask = plan_pb2.KvMask(layers=LAYERS, kv_heads=KV_HEADS, prompt_tokens=tokens, kept=bits)
    return _plan(tokens, 256, {"selection": plan_pb2.KV_SELECTION_DRAFT_MASK}, kv_mask=mask)


def _format(**values: Any) -> Values:
    return {"format": target_pb2.AnswerFormat(**values)}


ANSWERS: Mapping[Row, Callable[[int], Values]] = PREFILLS | {
    ("kv_plan.protected_spans", "spans"): lambda n: _plan(4 * n, 2 * n, protected_spans=_every_other(n)),
    ("kv_plan.lookahead_token_ids", "token ids"): lambda n: _plan(
        256, 64, {"lookahead_tokens": n}, lookahead_token_ids=[LETTER] * n
    ),
    ("kv_plan.kv_mask.kept", "bytes"): _masked,
    ("format.tools_json", "tools"): lambda n: _format(tools_json=[_SMALL_TOOL] * n),
    ("format.tools_json", "characters"): lambda n: _format(tools_json=[_filled(_TOOL, n)]),
    ("format.template_kwargs_json", "characters"): lambda n: _format(template_kwargs_json=_filled('{"note": "#"}', n)),
}


def _score(values: Values) -> draft_pb2.ScoreRequest:
    return draft_pb2.ScoreRequest(**{"token_ids": [LETTER] * 256, "policy": _POLICY} | values)


def _answer(values: Values) -> target_pb2.TargetServiceGenerateRequest:
    sampling = target_pb2.Sampling(**{"max_new_tokens": 1} | values.pop("sampling", {}))
    return target_pb2.TargetServiceGenerateRequest(**{"token_ids": [LETTER] * 256} | values, sampling=sampling)


def _prefill(values: Values) -> target_pb2.PrefillRequest:
    return target_pb2.PrefillRequest(**{"token_ids": [LETTER] * 256} | values)


def _sampled(makers: Mapping[Row, Callable[[int], Values]]) -> dict[Row, Callable[[int], Values]]:
    """The same as the field `sampling`."""
    return {row: lambda n, make=make: {"sampling": make(n)} for row, make in makers.items()}


@dataclass(frozen=True, slots=True)
class Method:
    """A way to send rows: the tables that hold for it, and a request for each of their rows."""

    name: str
    tables: tuple[Table, ...]
    senders: Mapping[Row, Callable[[int], Values]]
    message: Callable[[Values], Message | Values]

    @property
    def rows(self) -> dict[Row, Limit]:
        return {(row.field, row.unit): row for table in self.tables for row in table}


_OF_REQUESTS = (
    domain_limits.TOKEN_IDS,
    domain_limits.SPANS,
    domain_limits.TEXT,
    domain_limits.CHAT,
    core_limits.SAMPLING,
)
METHODS = (
    Method(GENERATE, _OF_REQUESTS, PROMPTS | _sampled(SAMPLINGS), _generate),
    Method(HTTP, _OF_REQUESTS, BODIES, lambda values: values),
    Method(SCORE, (draft_limits.SCORE,), SCORES, _score),
    Method(ANSWER, (target_limits.GENERATE,), ANSWERS | _sampled(SAMPLINGS), _answer),
    Method(PREFILL, (target_limits.PREFILL,), PREFILLS, _prefill),
)
# Rows at whose limit a request is refused by a check that knows the model.
_REFUSED = {(SCORE, "token_ids"): "PROMPT_TOO_LONG"}


def row_cases() -> list[Case]:
    """One for each row of each method that has a sender."""
    found = []
    for method in METHODS:
        for key, row in method.rows.items():
            if (sender := method.senders.get(key)) is not None:
                found.append(_case(method, row, sender))
    return found


def _case(method: Method, row: Limit, sender: Callable[[int], Values]) -> Case:
    outcome = _REFUSED.get((method.name, row.field), "answered")
    name = f"{row.field}: {row.most:,} {row.unit}"
    return Case(name, method.name, row.most, lambda: method.message(sender(row.most)), outcome)


# --- limits that are in no table


def _schema(characters: int) -> str:
    return _filled('{"type": "object", "description": "#"}', characters)


def _explained(spans: int) -> orchestrator_pb2.ExplainRequest:
    return orchestrator_pb2.ExplainRequest(**_prompt(token_ids=_ids(spans)), route="ROUTE_FULL", span_per_token=True)


def _wide(width: int) -> draft_pb2.ScoreRequest:
    """Kernels are odd."""
    wide = plan_pb2.SpecPc(capacity=64, window=8, start_layer=0, kernel=width - 1, neighbors=width)
    ids = [LETTER] * (DRAFT_CONTEXT // 2)
    return draft_pb2.ScoreRequest(token_ids=ids, policy=plan_pb2.Policy(spec_pc=wide))


def _small_messages(fields: int) -> orchestrator_pb2.GenerateRequest:
    """So many fields of five bytes and less: those of messages with nothing but a role."""
    return _generate(_chat(messages=[orchestrator_pb2.Message(role="a")] * (fields // 2)))


def _other(method: str, limit: str, most: int, make: Callable[[int], Message | Values], **more: Any) -> Case:
    return Case(f"{limit}: {most:,}", method, most, lambda: make(most), **more)


_METADATA_BYTES = rpc_limits.MAX_METADATA_BYTES // 2
# By the name of the number in a module of limits.
OTHERS: Mapping[str, tuple[Case, ...]] = {
    "MAX_GRAMMAR_CHARACTERS": (
        _other(
            GENERATE,
            "sampling.json_schema, characters",
            core_limits.MAX_GRAMMAR_CHARACTERS,
            lambda n: _generate({"sampling": {"json_schema": _schema(n)}}),
        ),
        _other(
            HTTP,
            "sampling.json_schema, characters",
            core_limits.MAX_GRAMMAR_CHARACTERS,
            lambda n: _completion(json_schema=_schema(n)),
        ),
    ),
    "MAX_EXPLAINED_SPANS": (
        _other(
            EXPLAIN,
            "explained spans",
            domain_limits.MAX_EXPLAINED_SPANS,
            _explained,
            bytes_per_byte=_BYTES_PER_SPAN,
        ),
        _other(
            HTTP,
            "explained spans",
            domain_limits.MAX_EXPLAINED_SPANS,
            lambda n: _completion(prompt=[LETTER] * n, presift={"explain": {"span_per_token": True}, "route": "full"}),
            bytes_per_byte=_BYTES_PER_SPAN,
        ),
    ),
    "MAX_WIDTH_TOKENS": (_other(SCORE, "kernel and neighbors", draft_limits.MAX_WIDTH_TOKENS, _wide),),
    "MAX_METADATA_BYTES": (
        _other(
            GENERATE,
            "metadata, half of its bytes",
            _METADATA_BYTES,
            lambda n: _generate({}),
            metadata=(("x-much", "y" * _METADATA_BYTES),),
        ),
    ),
}
# Limits that stand elsewhere, and what costs the most within a row.
MORE = (
    _other(GENERATE, "choices", domain_request.MAX_CHOICES, lambda n: _generate({"choices": n})),
    _other(HTTP, "n", domain_request.MAX_CHOICES, lambda n: _completion(n=n)),
    _other(
        GENERATE,
        "choices of a prompt of 65,536 tokens",
        domain_request.MAX_CHOICES,
        lambda n: _generate(_prompt(token_ids=_ids(65_536)) | {"choices": n}),
    ),
    _other(
        HTTP,
        "prompt.chat.messages.parts, each a bare string",
        domain_limits.MAX_PARTS,
        lambda n: _chat_body(messages=[_user(["a"] * n)]),
    ),
    _other(
        HTTP,
        "bytes of repeated prompts: token ids in each of 128 choices",
        repeated_prompts.MAX_REPEATED_BYTES,
        lambda n: _completion(
            prompt=[LETTER] * (n // (128 * domain_request.MAX_CHOICES)),
            n=domain_request.MAX_CHOICES,
            return_prompt_token_ids=True,
        ),
        bytes_per_byte=_BYTES_PER_REPEATED,
    ),
    _other(HTTP, "prompts", requests.MAX_PROMPTS, lambda n: _completion(prompt=[[LETTER]] * n)),
    _other(GENERATE, "fields", field_count.MAX_FIELDS - 16, _small_messages, outcome="INVALID_REQUEST"),
    _other(HTTP, "values", body.MAX_VALUES, lambda n: _completion(prompt=[1] * n), outcome="INVALID_REQUEST"),
    _other(HTTP, "objects", body.MAX_NESTED - 16, lambda n: _chat_body(messages=[{}] * n), outcome="INVALID_REQUEST"),
    _other(
        GENERATE,
        "prompt.text, characters of four bytes",
        core_limits.MAX_PROMPT_CHARACTERS,
        lambda n: _generate(_prompt(text="\N{GRINNING FACE}" * n)),
        outcome="PROMPT_TOO_LONG",
    ),
)


def cases() -> list[Case]:
    """All, the smallest limits first: what a large request leaves in memory hides what a small one takes."""
    others = [case for found in OTHERS.values() for case in found]
    return sorted([*row_cases(), *others, *MORE], key=lambda case: case.most)
