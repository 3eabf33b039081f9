"""The table of all that reads foreign bytes: callers' requests, peers' answers, and files that others wrote.

Each row has the code that reads, inputs to begin with, inputs that are grown because they once cost too much or might,
what it may raise, and what it may cost. `files` are those of `services/presift` that the row runs; the tests demand one
row for every file that parses anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.protobuf.message import DecodeError, Message
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from presift.cache import codec as cache_codec
from presift.cache.redis_url import read_redis_url
from presift.cli.evaluation.dataset import read_dataset
from presift.cli.evaluation.results import ResultFile
from presift.cli.planning.shapes import shape_of
from presift.cli.request import read_json
from presift.cli.stack.process import error_in
from presift.core.errors import PresiftError
from presift.core.fingerprint import fingerprint
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.stop_strings import StopStrings
from presift.draft import head_profile
from presift.draft.request import RequestLimits, parse
from presift.models.folder import weights_digest
from presift.models.safety import check_folder
from presift.orchestrator.api.auth.jwt_tokens import KeySet, TokenRules, TokenVerifier, read_key_set
from presift.orchestrator.api.auth.key_file import read_keys
from presift.orchestrator.api.grpc.requests import explain_request_from_wire, request_from_wire
from presift.orchestrator.api.http.body import parse_json_object
from presift.orchestrator.api.http.messages.conversion import PARAMETERS as OF_MESSAGES
from presift.orchestrator.api.http.messages.conversion import chat_from_messages
from presift.orchestrator.api.http.messages.rendering import _input as arguments_of_call
from presift.orchestrator.api.http.messages.schema import MessagesBody
from presift.orchestrator.api.http.reading import ReadBody
from presift.orchestrator.api.http.requests import requests_from_body, without_effect
from presift.orchestrator.api.http.responses.conversion import PARAMETERS as OF_RESPONSES
from presift.orchestrator.api.http.responses.conversion import chat_from_responses
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.schema import Body, ChatBody, CompletionBody, validate
from presift.orchestrator.api.http.tokenizing import DetokenizeBody, _id_lists
from presift.orchestrator.api.http.translation import Translated
from presift.orchestrator.api.http.unsupported import supported_parameters
from presift.orchestrator.backends.draft_codec import score_from_wire
from presift.orchestrator.backends.target_codec import info_from_wire, usage_from_wire
from presift.orchestrator.config.policy_file import MAX_BYTES, read_rules
from presift.orchestrator.config.policy_settings import PolicySettings
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.request import Request
from presift.orchestrator.prompt.template_variables import _undeclared as undeclared_variables
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.rpc import answer_codec, codec
from presift.rpc.security.file_watcher import FileWatcher
from presift.rpc.server.field_count import check_field_count
from presift.rpc.status import DETAILS_KEY, details_of, error_of
from presift.target.servicer import prefill_from_wire
from presift.target.servicer import request_from_wire as target_request
from presift.target.sglang_plugin.custom_params import from_text
from presift.v1 import draft_pb2, orchestrator_pb2, target_pb2

from . import corpus
from .cost_oracle import Bounds
from .growth import Growth, Repeated, nested, repeated

REPOSITORY = Path(__file__).parents[2]
MODEL = ModelInfo("model", "r1", "f", 4096, 16, 2, 256)
DIGEST = hashlib.sha256(b"a prompt").hexdigest()
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Parser:
    """A reader of foreign bytes. `words` are what its language is made of; `most_bytes`: longer inputs never reach it,
    or cannot be expected."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes | Message, ...]
    bounds: Bounds
    files: tuple[str, ...]
    grown: tuple[Growth, ...] = ()
    words: tuple[bytes, ...] = ()
    refusals: tuple[type[Exception], ...] = (PresiftError,)
    most_bytes: int = 4 * MIB

    def __str__(self) -> str:
        return self.name

    def run(self, data: bytes) -> None:
        """Read `data`; a refusal is an answer too."""
        try:
            self.read(data)
        except self.refusals:
            return


def _wire(kind: type[Message], convert: Callable[[Any], object]) -> Callable[[bytes], object]:
    """What a gRPC server does with the bytes of a message."""

    def read(raw: bytes) -> object:
        check_field_count(raw, kind.DESCRIPTOR)
        return convert(kind.FromString(raw))

    return read


def _answer(kind: type[Message], convert: Callable[[Any], object]) -> Callable[[bytes], object]:
    """What a gRPC client does with an answer's."""
    return lambda raw: convert(kind.FromString(raw))


def _of(method: str) -> tuple[Message, ...]:
    return tuple(each for name, each in (*corpus.DRAFT, *corpus.TARGET, *corpus.ORCHESTRATOR) if name == method)


# --- HTTP bodies ---


def _chat_request(given: dict[str, Any], schema: type[Body] = ChatBody) -> tuple[Request, ...]:
    ignored: dict[str, None] = {}
    body = validate(schema, supported_parameters(given, schema.model_fields, ignored), ignored)
    list(without_effect(body, frozenset()))
    return requests_from_body(body, 256, Caller(), "salt")


def _translated(raw: bytes, translate: Callable[[ReadBody], Translated]) -> tuple[Request, ...]:
    return _chat_request(translate(ReadBody(parse_json_object(raw), len(raw), 0.0)).given)


def _from_responses(read: ReadBody) -> Translated:
    body = OF_RESPONSES.validated(ResponsesBody, read.given, read.ignored)
    return chat_from_responses(body, read.given, read.ignored)


def _from_messages(read: ReadBody) -> Translated:
    body = OF_MESSAGES.validated(MessagesBody, read.given, read.ignored)
    return chat_from_messages(body, read.given, read.ignored, frozenset())


CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A <|mark|> document.", "document": True}]},
        {
            "role": "assistant",
            "content": "<think>Why?</think> See.",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "user", "content": "What does it say?"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "temperature": 0.5,
    "stop": ["zz"],
    "logit_bias": {"7": 1.5},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    "metadata": {"a": "b"},
    "unknown": {"a": [1, 2]},
    "presift": {"route": "spec_pc", "protected": [{"message": -1}], "documents": [{"message": 1, "part": 0}]},
}
COMPLETION = {"prompt": ["Some words.", "Others."], "max_tokens": 5, "logprobs": 2, "stop": ["a", "b"]}
IDS = {"prompt": [1, 2, 3], "presift": {"protected_spans": [{"start": 0, "end": 2}], "budget": {"strict": True}}}
RESPONSE = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Words."}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Why?"}], "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"role": "user", "content": "What?"},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
    "presift": {"protected": [{"message": 0}], "documents": [{"message": 3, "part": 0}]},
}
MESSAGES = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Words."}, {"type": "text", "text": "More."}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": [1]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "42"}]},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "presift": {"protected": [{"message": 0, "part": 1}], "documents": [{"message": 2}]},
}
JSON_WORDS = (b"[", b"{", b'{"a":', b'"', b"\\", b"\\u0000", b"null,", b"1e9", b"9", b"-", b'"a":1,', b"[],", b"{},")
JSON = Bounds(ms_per_kib=2.0, bytes_per_byte=250)


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def _many(value: Any, *pieces: bytes) -> Repeated:
    """`value` as JSON, in which each _HOLE stands for pieces."""
    *texts, tail = _dumps(value).replace(_dumps(_HOLE) + b", ", _dumps(_HOLE)).split(_dumps(_HOLE))
    return Repeated(tuple(zip(texts, pieces, strict=True)), tail)


# Before other elements of a list, without the comma.
_HOLE = "HOLE"


# --- the rendering of chats ---


@cache
def _tokenizer() -> PromptTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: at for at, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(each, special=True) for each in ("<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken("<|mark|>", special=False), AddedToken("<think>", special=False)])

    def template(messages: list[dict[str, Any]], tools: Any, **_: Any) -> str:
        head = f"tools: {json.dumps(tools)}\n" if tools else ""
        turns = [
            f"<|im_start|>{each['role']}\n{each['content'].strip()}{json.dumps(each.get('tool_calls', []))}<|im_end|>\n"
            for each in messages
        ]
        return f"{head}{''.join(turns)}<|im_start|>assistant\n"

    return PromptTokenizer(backend, template, 0)


def _rendered(raw: bytes) -> object:
    """A body's chat as the tokenizer reads it, without encoding: `tokenizers` does that, in a thread of its own."""
    return _tokenizer().render(_chat_request(parse_json_object(raw))[0].prompt)  # type: ignore[arg-type]


# --- files ---


@cache
def _folder() -> Path:
    """A folder for the files that some readers take by their path."""
    return Path(tempfile.mkdtemp(prefix="presift-parsers-"))


def _file(name: str, raw: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return path


def _model(config: bytes = b"{}", header: bytes = b"{}", index: bytes = b"{}") -> str:
    _file("model/config.json", config)
    _file("model/model.safetensors", len(header).to_bytes(8, "little") + header + bytes(64))
    _file("model/model.safetensors.index.json", index)
    check_folder(_folder() / "model")
    return weights_digest(_folder() / "model")


def _results(raw: bytes) -> object:
    with ResultFile(_file("results.jsonl", raw), "s") as file:
        return file.results


TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
RESULT = {
    "arm": "full",
    "prompt": "d",
    "settings": "s",
    "id": "1",
    "answer": {
        **dict.fromkeys(("prompt_tokens", "read_tokens", "kv_tokens", "completion_tokens"), 1),
        "text": "t",
        "token_ids": [1, 2],
        "route": "full",
        "reason": "r",
        "coverage": None,
        "finish_reason": "stop",
        "ttft_ms": 1.0,
        "total_ms": 2.0,
        "first_reading": True,
    },
}
PROFILE = {
    "model": "m",
    "model_revision": "r",
    "layers": 2,
    "heads_per_layer": 4,
    "heads": [[0, 1], [1, 3]],
    "reduction": "max",
    "recall": 0.5,
    "default_recall": 0.25,
    "created": "2026-01-01",
    "presift_version": "1",
}
SHAPE = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 1000,
}
KV_PLAN = {"capacity": 40, "lookahead": [1, 2], "protected": [[0, 4]], "keep_full_prefix": True}
MASK = {"shape": [1, 1, 8], "kept": "/w=="}
VOCABULARY = {
    "model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b", ["b", "a"]]},
    "added_tokens": [{"id": 2, "content": "<s>"}],
}
UNIGRAM = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}
KEYS = f"""keys:
  - {{name: ci, tenant: acme, sha256: {"9f" * 32}}}
  - {{name: op, tenant: ops, sha256: {"2c" * 32}, admin: true, expires: 2027-06-30}}
tenants:
  acme: {{tokens_per_minute: 2000, concurrency: 8}}
""".encode()
YAML_WORDS = (b"- ", b"? ", b": ", b"a: &a ", b"*a, ", b"<<: *a\n", b"[", b"{", b"!!set ", b"|\n ", b"'", b"\n", b":59")
YAML_WORDS += (b"k#: 1\n", b"- {a: 1}\n", b"1_", b"0x1", b"2001-01-01 ", b"# ", b"\t", b"- &a# 1\n", b"%TAG ! a\n")
# PyYAML's parser is Python: a character takes microseconds. Both files have at most a mebibyte.
YAML = Bounds(ms_per_kib=25.0, bytes_per_byte=1200)


# --- credentials ---


_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
_JWK = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(_KEY.public_key())) | {"kid": "k", "use": "sig", "alg": "EdDSA"}


@cache
def _verifier() -> TokenVerifier:
    keys: KeySet = read_key_set(_dumps({"keys": [_JWK]}), "jwks.json")
    return TokenVerifier(FileWatcher((), lambda: keys), TokenRules("https://issuer", "presift", max_lifetime_s=1e10))


def _token(header: bytes, claims: bytes) -> str:
    signed = b".".join(base64.urlsafe_b64encode(each).rstrip(b"=") for each in (header, claims))
    return (signed + b"." + base64.urlsafe_b64encode(_KEY.sign(signed)).rstrip(b"=")).decode()


_HEADER = {"alg": "EdDSA", "kid": "k", "typ": "JWT"}
_CLAIMS = {"iss": "https://issuer", "aud": ["presift"], "tenant": "acme", "exp": 4_102_444_800, "iat": 1}


# --- the cache, and answers of peers ---


_VALUE = CompressedPrompt(TokenMask(np.ones(180, np.bool_)), (1, 2), 0.5, MODEL)


def _cached(message: bytes) -> object:
    """A value that verifies, whatever it holds."""
    frame = zstandard.compress(message)
    return cache_codec.decode(DIGEST, cache_codec._MAGIC + cache_codec._tag(DIGEST, frame, "") + frame)


def _error(raw: bytes) -> object:
    trailers = grpc.aio.Metadata((DETAILS_KEY, raw))
    return error_of(grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), trailers))


def _target_answer(event: Any) -> object:
    kind = event.WhichOneof("event")
    return answer_codec.delta_from_wire(event.delta) if kind == "delta" else usage_from_wire(event.usage)


def _stopped(raw: bytes) -> object:
    """The first line is a stop string; the rest is the answer's text."""
    stop, _, text = raw.decode("latin-1").partition("\n")
    found = StopStrings([stop[:1024] or "x"])
    return [found.push(text[at : at + 3]) for at in range(0, len(text), 3)], found.finish()


SCORE = draft_pb2.ScoreResponse(
    token_mask=codec.token_mask_to_wire(_VALUE.mask),
    lookahead_token_ids=[1, 2],
    coverage=0.5,
    importance=[0.5] * 180,
    mass=[0.5] * 180,
    model=codec.model_to_wire(MODEL),
    kv_capacity=7,
    kv_coverage=0.5,
)
DELTA = target_pb2.TargetServiceGenerateResponse(
    delta=target_pb2.TokenDelta(
        token_ids=[1, 2],
        logprobs=[target_pb2.TokenLogprob(token_id=1, logprob=-1, top=[target_pb2.TopLogprob(token_id=2)])],
        parsed=target_pb2.ParsedText(content="a", tool_calls=[target_pb2.ToolCallDelta(index=0, id="c", name="f")]),
    )
)
USAGE = target_pb2.TargetServiceGenerateResponse(
    usage=target_pb2.TargetUsage(
        prompt_tokens=180,
        coverage=0.5,
        kv_mask=corpus.MASK_PLAN.kv_mask,
        load=target_pb2.TargetLoad(running=1),
        replica="r",
        prompt_logprobs=[target_pb2.TokenLogprob(token_id=1)],
    )
)
INFO = target_pb2.TargetServiceGetInfoResponse(
    model=codec.model_to_wire(MODEL),
    supported_routes=[1, 2],
    unsupported_routes=[target_pb2.UnsupportedRoute(route=3, reason="pages")],
    replica="r",
)
# Most of a message's memory is protobuf's: an empty message inside another takes two bytes on the wire.
WIRE = Bounds(ms_per_kib=3.0, bytes_per_byte=150, fixed_bytes=48 << 20)
TEXT = Bounds(ms_per_kib=0.5, bytes_per_byte=60)
GRPC_FILES = ("rpc/codec.py", "rpc/answer_codec.py", "rpc/server/field_count.py", "rpc/server/error_interceptor.py")
HTTP_FILES = (
    "orchestrator/api/http/body.py",
    "orchestrator/prompt/chat_tools.py",
    "core/generation.py",
)
LIMITS = RequestLimits(MODEL, 256)
_WIRE_REFUSALS = (PresiftError, DecodeError)


PARSERS: tuple[Parser, ...] = (
    Parser(
        "gRPC Generate",
        _wire(orchestrator_pb2.GenerateRequest, lambda message: request_from_wire(message, Caller(), "")),
        _of("OrchestratorService/Generate"),
        WIRE,
        GRPC_FILES,
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "gRPC Explain",
        _wire(orchestrator_pb2.ExplainRequest, lambda message: explain_request_from_wire(message, Caller(), "")),
        _of("OrchestratorService/Explain"),
        WIRE,
        GRPC_FILES,
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "draft's Score",
        _wire(draft_pb2.ScoreRequest, lambda message: parse(message, LIMITS)),
        _of("DraftService/Score"),
        WIRE,
        GRPC_FILES,
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "target's Generate",
        _wire(target_pb2.TargetServiceGenerateRequest, target_request),
        _of("TargetService/Generate"),
        WIRE,
        (*GRPC_FILES, "core/masks.py"),
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "target's Prefill",
        _wire(target_pb2.PrefillRequest, prefill_from_wire),
        _of("TargetService/Prefill"),
        WIRE,
        GRPC_FILES,
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "draft's answer",
        _answer(draft_pb2.ScoreResponse, score_from_wire),
        (SCORE,),
        WIRE,
        ("orchestrator/backends/draft_codec.py", "core/masks.py"),
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "target's answer",
        _answer(target_pb2.TargetServiceGenerateResponse, _target_answer),
        (DELTA, USAGE),
        WIRE,
        ("orchestrator/backends/target_codec.py",),
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "target's GetInfo",
        _answer(target_pb2.TargetServiceGetInfoResponse, info_from_wire),
        (INFO,),
        WIRE,
        ("orchestrator/backends/target_codec.py",),
        refusals=_WIRE_REFUSALS,
    ),
    Parser(
        "error details of a peer",
        _error,
        (details_of(PresiftError("trouble")),),
        WIRE,
        ("rpc/status.py",),
        most_bytes=16 * KIB,
    ),
    Parser(
        "cached value",
        _cached,
        (cache_codec._to_message(_VALUE),),
        WIRE,
        ("cache/codec.py",),
        refusals=(cache_codec.CorruptValue, cache_codec.OtherVersion),
        most_bytes=MIB,
    ),
    Parser(
        "cached bytes",
        partial(cache_codec.decode, DIGEST),
        (cache_codec.encode(DIGEST, _VALUE, MIB),),
        TEXT,
        ("cache/codec.py",),
        refusals=(cache_codec.CorruptValue, cache_codec.OtherVersion),
        most_bytes=MIB,
    ),
    Parser(
        "HTTP chat",
        lambda raw: _chat_request(parse_json_object(raw)),
        (_dumps(CHAT),),
        JSON,
        HTTP_FILES,
        grown=(
            _many({"messages": [_HOLE, *CHAT["messages"]]}, b'{"role":"user","content":"#"},'),
            _many(CHAT | {"presift": {"protected": [_HOLE, {"message": 1}]}}, b'{"message":0},'),
            repeated(b'{"messages": [{"role": "user", "content": "a"}], "seed": 9', b"9", b"}"),
            repeated(b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"a": 9', b"9", b"}]}"),
        ),
        words=JSON_WORDS,
    ),
    Parser(
        "HTTP completion",
        lambda raw: _chat_request(parse_json_object(raw), CompletionBody),
        (_dumps(COMPLETION), _dumps(IDS)),
        JSON,
        HTTP_FILES,
        words=JSON_WORDS,
    ),
    Parser(
        "Responses API",
        partial(_translated, translate=_from_responses),
        (_dumps(RESPONSE),),
        JSON,
        HTTP_FILES,
        grown=(
            _many(
                {"input": [_HOLE, *RESPONSE["input"]], "presift": {"protected": [_HOLE, {"message": 0}]}},
                b'{"role":"user","content":"a"},',
                b'{"message":#},',
            ),
        ),
        words=JSON_WORDS,
    ),
    Parser(
        "Messages API",
        partial(_translated, translate=_from_messages),
        (_dumps(MESSAGES),),
        JSON,
        HTTP_FILES,
        grown=(
            # Each of many references to one message, whose results of tools are messages of the chat.
            _many(
                MESSAGES
                | {
                    "messages": [{"role": "user", "content": [_HOLE, {"type": "text", "text": "a"}]}],
                    "presift": {"protected": [_HOLE, {"message": 0}]},
                },
                b'{"type":"tool_result","tool_use_id":"#"},',
                b'{"message":0},',
            ),
        ),
        words=JSON_WORDS,
    ),
    Parser(
        "HTTP detokenize",
        lambda raw: _id_lists(validate(DetokenizeBody, parse_json_object(raw), {}).tokens),
        (_dumps({"tokens": [1, 2, 3]}), _dumps({"tokens": [[1, 2], [3]]})),
        JSON,
        HTTP_FILES,
        words=JSON_WORDS,
    ),
    Parser(
        "chat's rendering",
        _rendered,
        (_dumps({name: value for name, value in CHAT.items() if name != "response_format"}),),
        Bounds(ms_per_kib=5.0, bytes_per_byte=400),
        ("orchestrator/prompt/caller_tokens.py", "orchestrator/prompt/chat_tools.py"),
        words=(*JSON_WORDS, b"<|im_end|>", b"<|", b"<think>", b"</think> ", b"\\ue000", b" ", b"<|im_", b"\\n"),
        most_bytes=MIB,
    ),
    Parser(
        "arguments of a call in an answer",
        lambda raw: arguments_of_call(raw.decode("utf-8", "replace")),
        (b'{"a": [1, {"b": null}], "c": "d"}',),
        JSON,
        ("orchestrator/api/http/messages/rendering.py",),
        words=JSON_WORDS,
    ),
    Parser(
        "answer's text and stop strings",
        _stopped,
        (b"aab\naaaab", b"zz\nan answer with z and zz"),
        Bounds(ms_per_kib=4.0, bytes_per_byte=100),
        ("core/stop_strings.py",),
        grown=(repeated(b"a" * 1023 + b"b\n", b"a"),),
    ),
    Parser(
        "policy file",
        lambda raw: read_rules(raw, "policy.yaml", _policy_settings()),
        ((REPOSITORY / "ops" / "policy.example.yaml").read_bytes(),),
        YAML,
        ("orchestrator/config/yaml_lines.py", "orchestrator/config/policy_file.py"),
        grown=(
            repeated(b"", b"key#: 1\n"),  # each error of an unknown key looked for its line among all keys
            repeated(b"window: 1", b":59"),  # a number of base 60
            repeated(b"window: 1", b":59", b".5"),
            nested(b"a: ", b"[", b"", b"]"),
        ),
        words=YAML_WORDS,
        most_bytes=MAX_BYTES,
    ),
    Parser(
        "key file",
        lambda raw: read_keys(raw, "keys.yaml"),
        (KEYS,),
        YAML,
        ("orchestrator/config/yaml_lines.py", "orchestrator/api/auth/key_file.py"),
        grown=(
            repeated(b"tenants:\n", b"  t#: {concurrency: 0}\n"),
            repeated(b"keys:\n  - {name: ci,", b"{"),  # each bracket cost the time of all that are open
        ),
        words=YAML_WORDS,
        most_bytes=MIB,
    ),
    Parser(
        "JWKS file",
        lambda raw: read_key_set(raw, "jwks.json"),
        (_dumps({"keys": [_JWK]}),),
        Bounds(ms_per_kib=10.0, bytes_per_byte=250),
        ("orchestrator/api/auth/jwt_tokens.py",),
        words=JSON_WORDS,
        most_bytes=MIB,
    ),
    Parser(
        "token's header",
        lambda raw: _verifier().verify(_token(raw, _dumps(_CLAIMS))),
        (_dumps(_HEADER),),
        JSON,
        ("orchestrator/api/auth/jwt_tokens.py",),
        grown=(nested(b'{"alg": "EdDSA", "kid": "k", "a": ', b"[", b"", b"]", b"}"),),
        words=JSON_WORDS,
        most_bytes=16 * KIB,
    ),
    Parser(
        "token's claims",
        lambda raw: _verifier().verify(_token(_dumps(_HEADER), raw)),
        (_dumps(_CLAIMS),),
        JSON,
        ("orchestrator/api/auth/jwt_tokens.py",),
        words=JSON_WORDS,
        most_bytes=16 * KIB,
    ),
    Parser(
        "token",
        lambda raw: _verifier().verify(raw.decode("latin-1")),
        (_token(_dumps(_HEADER), _dumps(_CLAIMS)).encode(),),
        JSON,
        ("orchestrator/api/auth/jwt_tokens.py",),
        words=(b".", b"=", b"e30."),
        most_bytes=16 * KIB,
    ),
    Parser(
        "KV plan of a stock server's caller",
        lambda raw: from_text(raw.decode("utf-8", "replace")),
        (_dumps(KV_PLAN), _dumps({"capacity": 40, "selection": "draft_mask", "kv_mask": MASK})),
        JSON,
        ("target/sglang_plugin/custom_params.py", "core/masks.py"),
        words=JSON_WORDS,
    ),
    Parser(
        "cache's URL",
        lambda raw: read_redis_url(raw.decode("latin-1")),
        (b"redis://user:password@host:6379/0?ssl_ca_certs=/a", b"redis+sentinel://:p@a:1,b:2/service/0", b"unix:///a"),
        TEXT,
        ("cache/redis_url.py",),
        words=(b"@", b":", b"/", b",", b"%41", b"&a=b", b"?"),
        most_bytes=64 * KIB,
    ),
    Parser(
        "model's config.json",
        lambda raw: _model(config=raw),
        (_dumps(SHAPE),),
        JSON,
        ("models/safety.py", "models/folder.py"),
        words=JSON_WORDS,
    ),
    Parser(
        "safetensors header",
        lambda raw: _model(header=raw),
        (_dumps({"a": TENSOR, "__metadata__": {"format": "pt"}}),),
        JSON,
        ("models/safety.py", "models/folder.py"),
        words=(*JSON_WORDS, b"0.0", b"1e3", b"true"),
    ),
    Parser(
        "index of weights",
        lambda raw: _model(index=raw),
        (_dumps({"weight_map": {"a": "model.safetensors"}}),),
        JSON,
        ("models/safety.py",),
        words=JSON_WORDS,
    ),
    Parser(
        "tokenizer.json",
        fingerprint,
        (_dumps(VOCABULARY), _dumps(UNIGRAM)),
        JSON,
        ("core/fingerprint.py", "models/folder.py"),
        words=JSON_WORDS,
    ),
    Parser(
        "head profile",
        lambda raw: head_profile.load(_file("presift-heads.json", raw)).by_layer,
        (_dumps(PROFILE),),
        JSON,
        ("draft/head_profile.py",),
        grown=(_many(PROFILE | {"heads": [_HOLE, [0, 0]]}, b"[#,0],"),),
        words=JSON_WORDS,
        most_bytes=MIB,
    ),
    Parser(
        "chat template's variables",
        lambda raw: undeclared_variables(raw.decode("utf-8", "replace")),
        (b"{% for m in messages %}{{ m.content | trim }}{% endfor %}{% if thinking -%} <think> {%- endif %}",),
        Bounds(ms_per_kib=15.0, bytes_per_byte=1500),
        ("orchestrator/prompt/template_variables.py",),
        words=(
            b"{{ a }}",
            b"{% if a %}",
            b"{%- generation -%}",
            b"{# ",
            b"{%",
            b"{%-      ",
            b"(",
            b"a.b",
            b"'",
            b"[0]",
        ),
        refusals=(PresiftError,),
        most_bytes=256 * KIB,
    ),
    Parser(
        "shape of a model to plan for",
        lambda raw: shape_of("target", str(_file("shape/config.json", raw).parent)),
        (_dumps(SHAPE),),
        JSON,
        ("cli/planning/shapes.py",),
        grown=(repeated(b"", b"["),),
        words=JSON_WORDS,
    ),
    Parser(
        "prompts of presift eval",
        lambda raw: read_dataset(_file("prompts.jsonl", raw)),
        (
            b'{"id": "a", "prompt": "Say 1", "expected": ["1"]}\n{"messages": [{"role": "user", "content": "b"}]}\n',
            b'{"prompt": "a or b", "choices": ["a", "b"], "expected": "a", "more": 1}\n',
        ),
        Bounds(ms_per_kib=3.0, bytes_per_byte=400),
        ("cli/evaluation/dataset.py",),
        words=(*JSON_WORDS, b'{"prompt": "a"}\n', b"\n"),
        refusals=(ValueError,),
        most_bytes=MIB,
    ),
    Parser(
        "results of presift eval",
        _results,
        (_dumps(RESULT) + b"\n",),
        JSON,
        ("cli/evaluation/results.py",),
        words=JSON_WORDS,
        refusals=(ValueError,),
        most_bytes=MIB,
    ),
    Parser(
        "JSON of presift's command",
        lambda raw: read_json(_file("tools.json", raw)),
        (_dumps(CHAT["tools"]),),
        JSON,
        ("cli/request.py",),
        grown=(repeated(b"", b"["),),
        words=JSON_WORDS,
        refusals=(ValueError,),
    ),
    Parser(
        "line of a service's log",
        lambda raw: error_in(raw.decode("utf-8", "replace")),
        (
            b"2026-01-01 10:00:00 ERROR presift.a words",
            b'{"level": "ERROR", "message": "m"}',
            b"presift.a.SomeError: no",
        ),
        TEXT,
        ("cli/stack/process.py",),
        words=(*JSON_WORDS, b"Error", b"Error: ", b" ERROR ", b": error: ", b"a."),
        most_bytes=64 * KIB,
    ),
)


@cache
def _policy_settings() -> PolicySettings:
    return PolicySettings()


_PACKAGE = "a package that the user has installed, whose code runs anyway"
_SGLANG = "its work is that of SGLang's parsers and schemas, which no test of this table loads"
# Files that parse, and need no row: why.
NO_ROW = {
    "cli/evaluation/suites/agent_sessions.py": _PACKAGE,
    "cli/evaluation/suites/foreign_python.py": _PACKAGE,
    "cli/evaluation/suites/ruler.py": _PACKAGE,
    "cli/render/strips.py": "the mask of the orchestrator that the command asked",
    "orchestrator/planning/conversations.py": "what the same process wrote",
    "orchestrator/prompt/control_tokens.py": "a tokenizer that `tokenizers` has read and writes again",
    "orchestrator/prompt/token_bytes.py": "a decoder that `tokenizers` has read and writes again",
    "target/sglang/arguments.py": "a model's config.json, whose folder was checked before",
    "target/sglang/call_formats.py": _SGLANG,
    "target/sglang/found_parsers.py": _SGLANG,
    "target/sglang/parsers.py": _SGLANG,
    "target/sglang/tool_call_stream.py": _SGLANG,
    "target/sglang/tools.py": _SGLANG,
    "telemetry/catalog.py": "a file of presift",
}
