"""Errors over HTTP, in OpenAI's shape: the parameter is named, the status is right, nothing is ignored silently."""

import asyncio
import json

import openai
import pytest

from presift.core.errors import DraftUnavailable, InternalError, ShuttingDown, TargetUnavailable
from presift.core.limits import MAX_GRAMMAR_CHARACTERS
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.api.http.errors import TABLE, error_response
from presift.orchestrator.api.http.unsupported import NEUTRAL
from presift.v1 import errors_pb2

from ..fakes.http_api import MODEL
from ..fakes.stack import ALL_ROUTES

CHAT = [{"role": "user", "content": "abcde"}]
LONG = list(range(100, 200))


@pytest.fixture
async def api(open_stack, open_http_api):
    return await open_http_api(await open_stack(routes=ALL_ROUTES))


def user(**changes):
    return [{"role": "user", "content": "abcde", **changes}]


def call(**changes):
    return {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}} | changes


def presift(**options):
    return {"presift": options}


# The change to a valid request, and the parameter that the error names.
BAD = {
    "no messages": ({"messages": None}, "messages"),
    "no message": ({"messages": []}, "messages"),
    "messages as text": ({"messages": "hello"}, "messages"),
    "a message as text": ({"messages": ["hello"]}, "messages[0]"),
    "an unknown role": ({"messages": user(role="robot")}, "messages[0].role"),
    "a function's message": ({"messages": user(role="function")}, "messages[0].role"),
    "content of a number": ({"messages": user(content=5)}, "messages[0].content"),
    "a picture": (
        {"messages": user(content=[{"type": "image_url", "image_url": {"url": "x"}}])},
        "messages[0].content[0].type",
    ),
    "an embedded sound": (
        {"messages": user(content=[{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}])},
        "messages[0].content[0].type",
    ),
    "a file": ({"messages": user(content=[{"type": "file", "file": {}}])}, "messages[0].content[0].type"),
    "a part of another kind": ({"messages": user(content=[{"type": "smell"}])}, "messages[0].content[0].type"),
    "a part without text": ({"messages": user(content=[{"type": "text"}])}, "messages[0].content[0].text"),
    "a user's calls": ({"messages": user(tool_calls=[call()])}, "messages[0].tool_calls"),
    "a call without a name": (
        {"messages": [*CHAT, {"role": "assistant", "tool_calls": [call(function={"arguments": "{}"})]}, *CHAT]},
        "messages[1].tool_calls[0]",
    ),
    "calls the template cannot write": (
        {"messages": [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call()]}, *CHAT]},
        "messages[1].tool_calls",
    ),
    "a document that is protected": (
        {"messages": user(content=[{"type": "text", "text": "a", "document": True, "protected": True}])},
        "messages[0].content[0]",
    ),
    "no JSON object as tool": ({"tools": ["add"]}, "tools[0]"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "a tool that must be called, of none": ({"tool_choice": "required"}, "tool_choice"),
    "a named tool that is not there": (
        {"tools": [call()], "tool_choice": {"type": "function", "function": {"name": "multiply"}}},
        "tool_choice.function.name",
    ),
    "a named tool of none": (
        {"tool_choice": {"type": "function", "function": {"name": "add"}}},
        "tool_choice.function.name",
    ),
    "allowed tools": ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
    "an unknown tool choice": ({"tool_choice": "maybe"}, "tool_choice"),
    "an unknown format and a forced call": (
        {"tools": [call()], "tool_choice": "required", "response_format": {"type": "yaml"}},
        "response_format.type",
    ),
    "tools within reasoning": ({"tools": [call()], "separate_reasoning": False}, "separate_reasoning"),
    "no answers": ({"n": 0}, "n"),
    "129 answers": ({"n": 129}, "n"),
    "n as a boolean": ({"n": True}, "n"),
    "log-probabilities as a number": ({"logprobs": 3}, "logprobs"),
    "top log-probabilities of none": ({"top_logprobs": 2}, "top_logprobs"),
    "21 top log-probabilities": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "a penalty over 2": ({"presence_penalty": 2.5}, "presence_penalty"),
    "another penalty below -2": ({"frequency_penalty": -2.5}, "frequency_penalty"),
    "a repetition penalty of 0": ({"repetition_penalty": 0}, "repetition_penalty"),
    "a bias over 100": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "a bias of a word": ({"logit_bias": {"hello": 1}}, "logit_bias"),
    "a temperature over 2": ({"temperature": 2.5}, "temperature"),
    "a temperature below 0": ({"temperature": -1}, "temperature"),
    "a share of 0": ({"top_p": 0}, "top_p"),
    "a share over 1": ({"top_p": 1.5}, "top_p"),
    "a least share over 1": ({"min_p": 1.5}, "min_p"),
    "top_k below -1": ({"top_k": -2}, "top_k"),
    "an option of its own": (presift(sampling={"top_k": 0}), "presift.sampling.top_k"),
    "two values of one option": ({"top_k": 3, **presift(sampling={"top_k": 4})}, "top_k"),
    "more tokens at least than at most": ({"min_tokens": 6}, "min_tokens"),
    "the same as an option": (presift(sampling={"min_new_tokens": 6}), "presift.sampling.min_new_tokens"),
    "an empty stop string": ({"stop": [""]}, "stop"),
    "an unknown format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "a JSON schema without a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    "no JSON schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    # Longer as JSON in ASCII than in the body, which must stay under its own limit.
    "a grammar that is too long": (
        {"response_format": {"type": "json_object", "schema": {"title": "é" * (MAX_GRAMMAR_CHARACTERS // 6)}}},
        "response_format",
    ),
    "two grammars": ({"regex": "a", "ebnf": "b"}, "ebnf"),
    "two grammars of different places": ({"guided_regex": "a", **presift(sampling={"regex": "b"})}, "guided_regex"),
    "a stop that is a regex": ({"stop_regex": "a+"}, "stop_regex"),
    "the stop string in the text": ({"no_stop_trim": True}, "no_stop_trim"),
    "an adapter": ({"lora_path": "x"}, "lora_path"),
    "no assistant's turn": ({"add_generation_prompt": False}, "add_generation_prompt"),
    "to continue a user": ({"continue_final_message": True}, "continue_final_message"),
    "effort as a boolean": ({"reasoning_effort": True}, "reasoning_effort"),
    "an echo": ({"echo": True}, "echo"),
    "a prompt": ({"prompt": "abc"}, "prompt"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "temperature in words": ({"temperature": "hot"}, "temperature"),
    "temperature as a boolean": ({"temperature": True}, "temperature"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "part of a token": ({"max_tokens": 1.5}, "max_tokens"),
    "two numbers of tokens": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    "a seed below -1": ({"seed": -2}, "seed"),
    "a seed over 64 bits": ({"seed": 2**64}, "seed"),
    "17 stop strings": ({"stop": ["x"] * 17}, "stop"),
    "a long stop string": ({"stop": "x" * 1025}, "stop"),
    "stop of a number": ({"stop": [5]}, "stop[0]"),
    "stream in words": ({"stream": "yes"}, "stream"),
    "presift in words": ({"presift": "please"}, "presift"),
    "an unknown option": (presift(rute="full"), "presift.rute"),
    "an unknown route": (presift(route="fast"), "presift.route"),
    "a route of a number": (presift(route=3), "presift.route"),
    "an unknown budget": (presift(budget={"max_tokens": 5}), "presift.budget.max_tokens"),
    "a budget of 0": (presift(budget={"max_prompt_tokens": 0}), "presift.budget.max_prompt_tokens"),
    "a budget below 0": (presift(budget={"max_prompt_tokens": -1}), "presift.budget.max_prompt_tokens"),
    "a budget in words": (presift(budget={"max_kv_tokens": "few"}), "presift.budget.max_kv_tokens"),
    "strict of a number": (presift(budget={"strict": 3}), "presift.budget.strict"),
    "a coverage over 1": (presift(budget={"min_coverage": 2}), "presift.budget.min_coverage"),
    "an unknown capacity": (presift(budget={"auto_capacity": {"x": 1}}), "presift.budget.auto_capacity.x"),
    "a capacity of a number": (presift(budget={"auto_capacity": 1}), "presift.budget.auto_capacity"),
    "an unknown kv": (presift(kv={"x": 1}), "presift.kv.x"),
    "an unknown selection": (presift(kv={"selection": "best"}), "presift.kv.selection"),
    "a lookahead too long": (presift(kv={"lookahead_tokens": 1000}), "presift.kv.lookahead_tokens"),
    "an unknown lookahead": (presift(kv={"lookahead": "both"}), "presift.kv.lookahead"),
    "no first tokens": (presift(kv={"first_full_tokens": 0}), "presift.kv.first_full_tokens"),
    "no window": (presift(kv={"renew_window": 0}), "presift.kv.renew_window"),
    "renewal below 0": (presift(kv={"renew_every": -1}), "presift.kv.renew_every"),
    "renewal without the prefix": (
        presift(kv={"renew_every": 4, "keep_full_prefix": False}),
        "presift.kv.keep_full_prefix",
    ),
    "both lookaheads": (presift(kv={"lookahead": "target", "lookahead_tokens": 3}), "presift.kv.lookahead_tokens"),
    "coverage without a draft": (
        presift(kv={"first_full_tokens": 4}, budget={"min_coverage": 0.5}),
        "presift.budget.min_coverage",
    ),
    "the KV mask of a selection that changes": (
        presift(kv={"renew_every": 4}, explain={"include_kv_mask": True}),
        "presift.explain.include_kv_mask",
    ),
    "OpenAI's own as an option": (presift(sampling={"temperature": 1}), "presift.sampling.temperature"),
    "spans of a chat": (presift(protected_spans=[{"start": 0, "end": 1}]), "presift.protected_spans"),
    "an unknown key of a span": (presift(protected_spans=[{"from": 0}]), "presift.protected_spans[0].from"),
    "a message that is not there": (presift(protected=[{"message": 1}]), "presift.protected[0].message"),
    "a part that is not there": (presift(documents=[{"message": 0, "part": 1}]), "presift.documents[0].part"),
    "an unknown explanation": (presift(explain={"x": 1}), "presift.explain.x"),
    "an explanation in a stream": ({"stream": True, **presift(explain=True)}, "stream"),
    "a timeout of 0": (presift(timeout_s=0), "presift.timeout_s"),
    "an endless timeout": (presift(timeout_s=1e300), "presift.timeout_s"),
}


@pytest.mark.parametrize(("change", "param"), BAD.values(), ids=BAD)
async def test_the_invalid_parameter_is_named(api, change, param):
    body = {"model": MODEL, "messages": CHAT, "max_tokens": 5} | change
    answer = await api.post({name: value for name, value in body.items() if value is not None})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert set(error) >= {"message", "type", "param", "code"} and param in error["message"]
    assert error["code"] in ("invalid_value", "context_length_exceeded")
    assert api.stack.target.calls == [] or error["presift"]["field"].startswith("sampling")


TEXT_BAD = {
    "no prompt": ({"prompt": ...}, "prompt"),
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "no tokens": ({"prompt": []}, "prompt"),
    "nothing twice": ({"prompt": ["", ""]}, "prompt"),
    "too many prompts": ({"prompt": ["a"] * 2049}, "prompt"),
    "spans of two prompts": (
        {"prompt": [[1], [2]], **presift(protected_spans=[{"start": 0, "end": 1}])},
        "presift.protected_spans",
    ),
    "an explanation of two prompts": ({"prompt": ["a", "b"], **presift(explain=True)}, "prompt"),
    "tokens below 0": ({"prompt": [-1]}, "prompt"),
    "tokens outside the vocabulary": ({"prompt": [5000]}, "prompt"),
    "booleans": ({"prompt": [True]}, "prompt"),
    "an object": ({"prompt": {"a": 1}}, "prompt"),
    "no token": ({"max_tokens": 0}, "max_tokens"),
    "tools": ({"tools": [call()]}, "tools"),
    "a suffix without tokens for it": ({"suffix": "x"}, "suffix"),
    "a suffix as a list": ({"suffix": ["x"]}, "suffix"),
    "the best of two": ({"best_of": 2}, "best_of"),
    "the best of one of two": ({"n": 2, "best_of": 1}, "best_of"),
    "log-probabilities as a boolean": ({"logprobs": True}, "logprobs"),
    "21 log-probabilities": ({"logprobs": 21}, "logprobs"),
    "parts of messages": (presift(protected=[{"message": 0}]), "presift.protected"),
    "messages": ({"messages": CHAT}, "messages"),
    "an empty span": ({"prompt": [1, 2, 3], **presift(protected_spans=[{"start": 2, "end": 2}])}, None),
}  # fmt: skip


@pytest.mark.parametrize(("change", "param"), TEXT_BAD.values(), ids=TEXT_BAD)
async def test_the_invalid_parameter_of_a_completion_is_named(api, change, param):
    body = {"model": MODEL, "prompt": "abc", "max_tokens": 5} | change
    answer = await api.post({name: value for name, value in body.items() if value is not ...}, "/v1/completions")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert param is None or error["param"] == param, error


def test_every_unsupported_parameter_is_rejected_unless_neutral():
    """OpenAI's own client has them: a new one must be put in one of the tables."""
    from openai.types import completion_create_params as text
    from openai.types.chat import completion_create_params as chat

    from presift.orchestrator.api.http.schema import ChatBody, CompletionBody
    from presift.orchestrator.api.http.unsupported import WITHOUT_EFFECT

    for params, kind in (
        (chat.CompletionCreateParamsBase, ChatBody),
        (text.CompletionCreateParamsBase, CompletionBody),
    ):
        known = set(NEUTRAL) | WITHOUT_EFFECT | set(kind.model_fields)
        assert set(params.__annotations__) <= known


async def test_no_error_quotes_the_prompt(api):
    secret = "xylophone " * 50
    for change in (
        {"messages": secret},
        {"messages": [{"role": secret, "content": secret}]},
        {"messages": [{"role": "user", "content": {secret: 1}}]},
        {"stop": [secret * 20]},
        {"temperature": secret},
        {"presift": {"route": secret}},
        {"presift": {"budget": {"max_kv_tokens": secret}}},
        {"tools": [{"type": secret}]},
        {"user": secret, "n": 0},
    ):
        answer = await api.post({"model": MODEL, "messages": CHAT} | change)
        assert answer.status_code == 400 and "xylophone xylophone" not in answer.text, answer.text


RAW = {
    "no JSON": (b"{", "application/json", 400, "body"),
    "nothing": (b"", "application/json", 400, "body"),
    "a list": (b"[]", "application/json", 400, "body"),
    "NaN": (b'{"temperature": NaN}', "application/json", 400, "body"),
    "deep": (b"[" * 100_000, "application/json", 400, "body"),
    "half a surrogate pair": (b'{"prompt": "\\ud800"}', "application/json", 400, "body"),
    "no UTF-8": (b'{"prompt": "\xff"}', "application/json", 400, "body"),
    "a form": (b"model=target", "application/x-www-form-urlencoded", 415, None),
    "plain text, as any page may send it": (b"{}", "text/plain", 415, None),
}


@pytest.mark.parametrize(("raw", "kind", "status", "param"), RAW.values(), ids=RAW)
async def test_a_body_that_is_not_json(api, raw, kind, status, param):
    answer = await api.http.post("/v1/chat/completions", content=raw, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_numbers_that_json_does_not_have(api):
    answer = await api.http.post(
        "/v1/chat/completions",
        content=b'{"model":"target","messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f","x":1e999}}]}',
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[0]")


async def test_compressed_bodies_are_rejected(api):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await api.http.post("/v1/chat/completions", content=b"\x1f\x8b", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_body_that_is_too_large(stack, open_http_api):
    api = await open_http_api(stack, max_body_bytes=1000)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a" * 2000}]}
    assert (await api.post(body)).json()["error"]["code"] == "body_too_large"

    async def chunks():
        for _ in range(100):
            yield b"{" * 100

    answer = await api.http.post("/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert (await api.post({"model": MODEL, "messages": CHAT, "max_tokens": 5})).status_code == 200


async def test_the_limits_are_the_same_as_over_grpc(stack, open_http_api):
    api = await open_http_api(stack, max_body_bytes=2**24)
    for messages, param in (
        ([{"role": "user", "content": "a"}] * 4097, "messages"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 16_385}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 8193}] * 2, "messages.content"),
        ([{"role": "user", "content": "a" * 8_388_609}], "messages"),
    ):
        error = (await api.post({"model": MODEL, "messages": messages})).json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_value")
    error = (await api.post({"model": MODEL, "prompt": [1] * 1_048_577}, "/v1/completions")).json()["error"]
    assert error["param"] == "prompt" and "1048576" in error["message"]


async def test_another_model(api):
    with pytest.raises(openai.NotFoundError) as refused:
        await api.client.chat.completions.create(model="gpt-4o", messages=CHAT)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert "served: target" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        await api.client.models.retrieve("gpt-4o")
    body = {"model": "gpt-4o", "messages": CHAT, "presift": {"route": "unknown"}}
    assert (await api.post(body)).status_code == 404, "not 400 for the invalid option"


async def test_other_paths_and_methods(api):
    for method, path, status in (
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/embeddings", 404),
        ("POST", "/v1/chat/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("POST", "/docs", 405),
        ("GET", "/v1/health", 404),
        ("GET", "/" * 2000 + "health", 404),
    ):
        answer = await api.http.request(method, f"{api.url}{path}", headers={"origin": "https://elsewhere.example"})
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (status == 405) == ("allow" in answer.headers) and "location" not in answer.headers
    assert (await api.http.get("/v1/chat/completions")).headers["allow"] == "POST"


async def test_errors_are_counted(api, telemetry):
    def counted(route, status):
        return telemetry.total("presift.http.replies", http_route=route, status=status)

    wanted = [("/v1/chat/completions", "200"), ("/v1/chat/completions", "400"), ("/v1/completions", "415")]
    wanted += [("other", "404"), ("other", "405"), ("/v1/models/{model:path}", "404")]
    before = [counted(*each) for each in wanted]
    await api.post({"model": MODEL, "messages": CHAT, "max_tokens": 5})
    await api.post({"model": MODEL, "messages": []})
    await api.http.post("/v1/completions", content=b"")
    await api.http.get("/secret-path")
    await api.http.get("/v1/completions")
    await api.http.get("/v1/models/gpt-4o")
    await api.http.get("/health")
    assert [counted(*each) - old for each, old in zip(wanted, before, strict=True)] == [1] * len(wanted)


async def test_null_is_the_same_as_leaving_out(api):
    options = {
        "route": None,
        "budget": {"max_kv_tokens": None},
        "protected": None,
        "documents": None,
        "token_ids": None,
    }
    said = {"stream": True, "stream_options": {"include_usage": None}, "presift": options | {"explain": None}}
    answer = await api.post({"model": MODEL, "messages": user(name=None, protected=None), "max_tokens": 5} | said)
    assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")


async def test_a_list_that_is_too_long_has_a_plain_message(api):
    error = (await api.post({"model": MODEL, "messages": CHAT, "stop": ["x"] * 17})).json()["error"]
    assert error["message"] == "stop is a list of 17; it must be a list of at most 16"


async def test_a_strict_budget_that_cannot_be_met(api):
    extra = presift(route="full", budget={"max_prompt_tokens": 20, "strict": True})
    with pytest.raises(openai.BadRequestError) as refused:
        await api.client.completions.create(model=MODEL, prompt=LONG, max_tokens=5, extra_body=extra)
    assert refused.value.code == "budget_exceeded" and refused.value.param.startswith("presift.budget")
    assert refused.value.body["presift"]["reason"] == "BUDGET_EXCEEDED"


async def test_an_unsupported_route(stack, open_http_api):
    api = await open_http_api(stack)
    with pytest.raises(openai.BadRequestError) as refused:
        await api.client.completions.create(model=MODEL, prompt=LONG, max_tokens=5, extra_body=presift(route="spec_kv"))
    assert (refused.value.code, refused.value.param) == ("route_unsupported", "presift.route")


async def test_a_prompt_that_is_too_long(api):
    """In OpenAI's words: LiteLLM and agents look for them."""
    with pytest.raises(openai.BadRequestError) as refused:
        await api.client.completions.create(
            model=MODEL, prompt=[1] * 500, max_tokens=5, extra_body=presift(route="full")
        )
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "prompt"
    assert refused.value.body["message"].startswith(
        "This model's maximum context length is 400 tokens. However, you requested 501 tokens (500 in the prompt, 1 in"
        " the completion). Please reduce the length of the prompt or completion. (prompt is 500 tokens; it must be"
    )
    with pytest.raises(openai.BadRequestError) as refused:
        await api.client.chat.completions.create(
            model=MODEL, messages=user(content="a" * 500), max_tokens=5, extra_body=presift(route="full")
        )
    assert "(524 in the messages, 1 in the completion). Please reduce the length of the messages" in str(refused.value)
    over_grpc = await api.stack.refused([1] * 500, route="ROUTE_FULL", max_new_tokens=5)
    assert over_grpc.message.startswith("prompt is 500 tokens; it must be <= 399 (context 400 less")


@pytest.mark.parametrize(
    ("kind", "media"), [("image_url", "pictures"), ("input_audio", "audio"), ("file", "files"), ("video_url", "videos")]
)
async def test_other_media_are_refused_by_name(api, kind, media):
    content = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {"url": "https://example.org/x"}}]
    error = (await api.post({"model": MODEL, "messages": user(content=content)})).json()["error"]
    assert error["message"] == (
        f"messages[0].content[1].type is '{kind}'; it must be 'text': this server reads no {media}"
    )


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/embeddings", "embeddings"),
        ("/v1/moderations", "moderation"),
        ("/v1/images/generations", "pictures"),
        ("/v1/audio/transcriptions", "audio"),
        ("/v1/files", "files"),
        ("/v1/rerank", "reranking"),
    ],
)
async def test_known_endpoints_that_are_not_there_are_refused_by_name(api, path, what):
    answer = await api.post({"model": MODEL, "input": "a"}, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.json()["error"]["message"].startswith(
        f"this server has no endpoint for {what}; known: POST /v1/chat/"
    )
    with pytest.raises(openai.NotFoundError, match="no endpoint for embeddings"):
        await api.client.embeddings.create(model=MODEL, input="a")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses/resp_1", 404),
        ("GET", "/responses/resp_1/input_items", 404),
        ("POST", "/v1/responses/resp_1/cancel", 404),
        ("DELETE", "/v1/responses/resp_1", 404),
        ("GET", "/v1/chat/completions/chatcmpl-1", 404),
        ("GET", "/v1/chat/completions", 405),
    ],
)
async def test_stored_answers_are_said_not_to_exist(api, method, path, status):
    answer = await api.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    assert answer.json()["error"]["message"].startswith("answers are not stored, so none can be listed, retrieved")


async def test_openais_client_is_told_that_answers_are_not_stored(api):
    responses = api.client.responses
    for ask in (responses.retrieve("resp_1"), responses.cancel("resp_1"), responses.delete("resp_1")):
        with pytest.raises(openai.NotFoundError, match="answers are not stored"):
            await ask
    for method, path in (("PUT", "/v1/chat/completions"), ("POST", "/v1/responses/input_tokens")):
        unknown = (await api.http.request(method, path)).json()["error"]["message"]
        assert unknown.startswith("unknown path or method")


async def test_no_target_yet(build, open_http_api):
    api = await open_http_api(await build())
    for ask in (api.client.models.list(), api.client.completions.create(model=MODEL, prompt="a")):
        with pytest.raises(openai.InternalServerError) as refused:
            await ask
        assert (refused.value.status_code, refused.value.code) == (503, "target_unavailable")


async def test_overload_says_when_to_retry(open_stack, open_http_api):
    stack = await open_stack(limits=QueueLimits(max_running=1, max_waiting=0))
    api = await open_http_api(stack)
    stack.target.pause_after = 1
    running = asyncio.create_task(api.client.completions.create(model=MODEL, prompt=[1, 2, 3]))
    await stack.settle(lambda: stack.target.running == 1)
    with pytest.raises(openai.RateLimitError) as refused:
        await api.client.completions.create(model=MODEL, prompt=[1, 2, 3])
    headers = refused.value.response.headers
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.body["presift"]["field"] == "waiting_requests"
    assert int(headers["retry-after"]) >= 1 and int(headers["retry-after-ms"]) > 0
    again = api.client_of("none", max_retries=5)
    second = asyncio.create_task(again.completions.create(model=MODEL, prompt=[4, 5]))
    await asyncio.sleep(0.05)
    stack.target.gate.set()
    await running
    assert (await second).usage.prompt_tokens == 2


async def test_a_stream_that_fails_ends_with_an_error(api):
    api.stack.target.die_after = 2
    stream = await api.client.completions.create(model=MODEL, prompt="abcdefg", max_tokens=5, stream=True)
    said = []
    with pytest.raises(openai.APIError) as broken:
        async for chunk in stream:
            said.append(chunk.choices[0].text)
    assert "".join(said) == "gf" and broken.value.code == "target_unavailable"
    assert broken.value.body["presift"]["delivered_tokens"] == "2"


async def test_an_error_before_the_first_token_has_its_own_status(api):
    """Also for a stream, so that clients retry."""

    async def fails(context):
        raise TargetUnavailable("gone")

    for is_stream in (False, True):
        api.stack.target.faults.extend([fails] * 10)
        answer = await api.post({"model": MODEL, "prompt": "abc", "stream": is_stream}, "/v1/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "target_unavailable")
        api.stack.target.faults.clear()


def test_the_table_has_every_reason():
    reasons = {name.removeprefix("ERROR_REASON_") for name in dict(errors_pb2.ErrorReason.items())} - {"UNSPECIFIED"}
    assert set(TABLE) == reasons
    for error, status in ((DraftUnavailable("x"), 503), (ShuttingDown("x"), 503), (InternalError("x"), 500)):
        assert error_response(error).status == status
    # OpenAI's clients retry 5xx: not if that cannot help.
    assert error_response(InternalError("x")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in error_response(ShuttingDown("x")).headers


async def test_an_internal_error_quotes_nothing(api, monkeypatch, caplog):
    def breaks(*args, **kwargs):
        raise RuntimeError("xylo" + "phone")

    monkeypatch.setattr(api.stack.pipeline, "generate", breaks)
    answer = await api.post({"model": MODEL, "prompt": "abc"}, "/v1/completions")
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert "xylophone" not in answer.text + caplog.text and "RuntimeError" in caplog.text
    assert json.loads(answer.text)["error"]["type"] == "server_error"
