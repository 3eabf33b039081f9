"""The OpenAI-compatible API with OpenAI's own client: answers and streams, and the same decisions as over gRPC."""

import asyncio
import json

import pytest
from google.protobuf.json_format import ParseDict

from presift.orchestrator.api.http.presift_json import presift_json
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.http_api import MODEL
from ..fakes.stack import ALL_ROUTES

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "abcde"}]
RENDERED = "<system>Be brief.</system><user>abcde</user><assistant>"
LONG = "".join(chr(97 + i % 26) for i in range(100))
# Times, and values that depend on them.
VOLATILE = ("tokenize_ms", "cache_ms", "draft_ms", "prefill_ms", "predicted_ttft_ms")


@pytest.fixture
async def api(open_stack, open_http_api):
    return await open_http_api(await open_stack(routes=ALL_ROUTES))


def backwards(text, tokens=5):
    """The fake target's answer."""
    return text[::-1][:tokens]


def timeless(decision):
    return {name: value for name, value in decision.items() if name not in VOLATILE}


async def test_a_chat(api):
    answer = await api.client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "target"
    assert answer.system_fingerprint == "r1"
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", backwards(RENDERED))
    assert choice.finish_reason == "length" and choice.logprobs is None and choice.message.tool_calls is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(RENDERED), 5)
    assert answer.usage.total_tokens == len(RENDERED) + 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.presift["decision"]["route"] == "full"
    assert answer.presift["usage"]["kept_tokens"] == len(RENDERED)


async def test_a_chat_in_a_stream(api):
    stream = await api.client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == backwards(RENDERED)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].presift["decision"]["prompt_tokens"] == len(RENDERED)
    assert not any("presift" in chunk.model_extra for chunk in chunks[:-1])


async def test_a_stream_with_usage_ends_with_it(api):
    stream = await api.client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert last.choices == [] and last.usage.completion_tokens == 5
    assert last.usage.prompt_tokens_details.cached_tokens == 3
    assert last.presift["decision"]["route"] == "full"
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_the_decision_is_in_the_header(api):
    whole = await api.client.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT, max_tokens=5)
    stream = await api.client.chat.completions.with_raw_response.create(
        model=MODEL, messages=CHAT, max_tokens=5, stream=True
    )
    body = whole.parse().presift["decision"]
    for raw in (whole, stream):
        decision = json.loads(raw.headers["presift-decision"])
        assert decision["route"] == "full" and decision["prompt_tokens"] == len(RENDERED)
        assert {name: body[name] for name in decision if name not in VOLATILE} == timeless(decision)
    assert [chunk async for chunk in stream.parse()]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_completion_of_text_and_of_token_ids(api, is_stream):
    for prompt, said in (("abcdefg", "gfedc"), (["abcdefg"], "gfedc"), ([65, 66, 67], "dcb"), ([[65, 66, 67]], "dcb")):
        answer = await api.client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, stream=is_stream)
        answers = [chunk async for chunk in answer] if is_stream else [answer]
        assert {each.object for each in answers} == {"text_completion"}
        text = "".join(each.choices[0].text for each in answers)
        assert text == (said if isinstance(prompt[0], str) else api.stack.tokenizer.backend.decode(ids_of(prompt)))
        assert answers[-1].choices[0].finish_reason == "length"
        assert answers[-1].presift["decision"]["route"] == "full"


def ids_of(prompt):
    return (prompt[0] if isinstance(prompt[0], list) else prompt)[::-1]


async def test_token_ids_are_included_on_request(api):
    extra = {"presift": {"token_ids": True}}
    whole = await api.client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=2, extra_body=extra)
    assert whole.choices[0].token_ids == [7, 6]
    stream = await api.client.completions.create(
        model=MODEL, prompt=[5, 6, 7], max_tokens=2, extra_body=extra, stream=True
    )
    assert [token for chunk in [each async for each in stream] for token in chunk.choices[0].token_ids] == [7, 6]


OPTIONS = {
    "nothing": {},
    "a route": {"route": "spec_pc"},
    "the protos' own name": {"route": "ROUTE_SPEC_KV"},
    "a cascade": {"route": "spec_kv_pc"},
    "a budget": {"budget": {"max_prompt_tokens": 20}},
    "a threshold": {"budget": {"compress_above_tokens": 300}},
    "kv": {"route": "spec_kv", "kv": {"selection": "draft_mask"}, "budget": {"max_kv_tokens": 12}},
    "renewal": {"route": "spec_kv", "kv": {"lookahead": "target", "renew_every": 3, "renew_window": 2}},
    "first tokens": {"route": "spec_kv_pc", "kv": {"first_full_tokens": 2, "keep_full_prefix": True}},
    "a coverage": {"budget": {"auto_capacity": {"coverage": 0.1, "min_tokens": 5}}, "route": "spec_pc"},
    "spans": {"protected_spans": [{"start": 3, "end": 9}], "route": "spec_pc"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_decisions_are_the_same_as_over_grpc(open_stack, open_http_api, options, is_stream):
    """Each in its own stack: they would share a cache."""
    prompt = list(range(100, 200))
    over_http = await open_http_api(await open_stack(routes=ALL_ROUTES))
    over_grpc = await open_stack(routes=ALL_ROUTES)
    answer = await over_http.client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=7,
        temperature=0,
        stream=is_stream,
        extra_body={"presift": options | {"token_ids": True}},
    )
    answers = [chunk async for chunk in answer] if is_stream else [answer]
    expected = await over_grpc.ask(prompt, max_new_tokens=7, sampling={"temperature": 0}, **as_grpc(options))
    assert timeless(answers[-1].presift["decision"]) == timeless(presift_json(expected.decision))
    assert [token for each in answers for token in each.choices[0].token_ids] == expected.token_ids
    here, there = over_http.stack.target.calls[-1], over_grpc.target.calls[-1]
    assert here.SerializeToString(deterministic=True) == there.SerializeToString(deterministic=True)
    drafts = [
        [call.SerializeToString(deterministic=True) for call in each.draft.calls]
        for each in (over_http.stack, over_grpc)
    ]
    assert drafts[0] == drafts[1]


def as_grpc(options):
    named = {"selection": "KV_SELECTION_DRAFT_MASK", "lookahead": "KV_LOOKAHEAD_TARGET"}
    kv = ParseDict(
        {name: named.get(name, value) for name, value in options.get("kv", {}).items()}, orchestrator_pb2.KvOptions()
    )
    route = options.get("route", "unspecified").upper().removeprefix("ROUTE_")
    return {
        "route": plan_pb2.Route.Value(f"ROUTE_{route}"),
        "budget": options.get("budget"),
        "kv": {name: getattr(kv, name) for name in options.get("kv", {})},
        "spans": [(span["start"], span["end"]) for span in options.get("protected_spans", ())],
    }


async def test_the_same_chat_is_the_same_prompt(api):
    """What one API has cached, the other finds."""
    chat = [("system", "Be brief."), ("user", LONG), ("assistant", "ok"), ("user", "?")]
    messages = [{"role": role, "content": text} for role, text in chat]
    first = await api.client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=5,
        temperature=0,
        extra_body={"presift": {"route": "spec_pc", "budget": {"max_prompt_tokens": 120}}},
    )
    second = await api.stack.ask(chat, route=plan_pb2.ROUTE_SPEC_PC, budget={"max_prompt_tokens": 120})
    assert (first.presift["decision"]["cache"], second.cache) == ("miss", "HIT")
    assert first.presift["decision"]["protected_tokens"] == second.decision.protected_tokens
    assert first.choices[0].message.content == second.text


MARKED = {
    "parts": ({"content": [{"type": "text", "text": LONG, "document": True}, {"type": "text", "text": "Why?"}]}, {}),
    "documents": (
        {"content": [{"type": "text", "text": LONG}, {"type": "text", "text": "Why?"}]},
        {"documents": [{"message": -3, "part": 0}]},
    ),
    "protected part": (
        {"content": [{"type": "text", "text": LONG}, {"type": "text", "text": "Why?", "protected": True}]},
        {},
    ),
    "protected places": (
        {"content": [{"type": "text", "text": LONG}, {"type": "text", "text": "Why?"}]},
        {"protected": [{"message": 0, "part": 1}]},
    ),
    "a whole message": ({"content": LONG, "protected": True}, {}),
    "a whole place": ({"content": LONG}, {"protected": [{"message": 0}]}),
}


@pytest.mark.parametrize(("message", "options"), MARKED.values(), ids=MARKED)
async def test_marked_parts_are_kept(api, message, options):
    await api.client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", **message},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "?"},
        ],
        max_tokens=5,
        extra_body={"presift": {"route": "spec_pc", "budget": {"max_prompt_tokens": 75}, **options}},
    )
    read = api.stack.tokenizer.backend.decode(list(api.stack.target.calls[-1].token_ids))
    whole = "a whole" in next(name for name, each in MARKED.items() if each == (message, options))
    assert (LONG in read) is whole and ("Why?" in read) is not whole


async def test_tools_reach_the_template(api):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    await api.client.chat.completions.create(model=MODEL, messages=CHAT, tools=[tool], max_tokens=5, tool_choice="auto")
    read = api.stack.tokenizer.backend.decode(list(api.stack.target.calls[-1].token_ids))
    assert read.startswith(f"<tools>{[tool]}</tools>")
    await api.client.chat.completions.create(model=MODEL, messages=CHAT, tools=[tool], max_tokens=5, tool_choice="none")
    read = api.stack.tokenizer.backend.decode(list(api.stack.target.calls[-1].token_ids))
    assert read == RENDERED


async def test_an_answer_can_be_sent_back_as_a_message(api):
    answer = await api.client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5)
    turns = [*CHAT, answer.choices[0].message, {"role": "user", "content": "more"}]
    again = await api.client.chat.completions.create(model=MODEL, messages=turns, max_tokens=5)
    said = answer.choices[0].message.content
    expected = RENDERED.removesuffix("<assistant>") + f"<assistant>{said}</assistant><user>more</user><assistant>"
    assert again.usage.prompt_tokens == len(expected)


async def test_sampling_reaches_the_target(api):
    await api.client.chat.completions.create(
        model=MODEL, messages=CHAT, max_completion_tokens=4, temperature=0.5, top_p=0.25, seed=7, stop=["x", "yz"],
        extra_body={"presift": {"sampling": {"top_k": 9, "stop_token_ids": [3, 4], "ignore_eos": True}}},
    )  # fmt: skip
    sampling = api.stack.target.calls[-1].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (4, 0.5, 0.25, 7)
    assert (list(sampling.stop), sampling.top_k, list(sampling.stop_token_ids)) == (["x", "yz"], 9, [3, 4])
    assert sampling.ignore_eos
    await api.client.chat.completions.create(model=MODEL, messages=CHAT, stop="q")
    sampling = api.stack.target.calls[-1].sampling
    # OpenAI's default; the number of tokens is the deployment's.
    assert (sampling.temperature, sampling.max_new_tokens, list(sampling.stop)) == (1.0, 5, ["q"])
    assert not sampling.HasField("top_p") and not sampling.HasField("seed")


async def test_parameters_without_effect_are_accepted(api):
    await api.client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=5, user="me", metadata={"a": "b"}, store=True, n=1, logprobs=False,
        presence_penalty=0, frequency_penalty=0.0, logit_bias={}, response_format={"type": "text"},
        service_tier="auto", parallel_tool_calls=True, extra_body={"top_logprobs": None, "presift": {}},
    )  # fmt: skip


async def test_explain_generates_nothing(api):
    messages = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "?"},
    ]
    options = {"route": "spec_pc", "explain": True, "budget": {"max_prompt_tokens": 80}}
    answer = await api.client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=5, extra_body={"presift": options}
    )
    assert answer.choices == [] and api.stack.target.calls == []
    explanation = answer.presift["explanation"]
    assert answer.presift["decision"]["route"] == "spec_pc"
    assert explanation["text"].startswith(f"<user>{LONG}</user>")
    assert sum(span["tokens"]["end"] - span["tokens"]["start"] for span in explanation["spans"] if span["kept"]) == 80
    options["explain"] = {"span_per_token": True}
    answer = await api.client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=5, extra_body={"presift": options}
    )
    assert len(answer.presift["explanation"]["spans"]) == answer.usage.prompt_tokens


async def test_models(stack, open_http_api):
    api = await open_http_api(stack, aliases="gpt-4o, other/name")
    models = [model async for model in await api.client.models.list()]
    assert [model.id for model in models] == ["target", "gpt-4o", "other/name"]
    assert models[0].presift["context_tokens"] == 400
    assert models[0].max_model_len == models[1].context_length == 400 and models[1].root == "target"
    retrieved = await api.client.models.retrieve("gpt-4o")
    assert (retrieved.id, retrieved.max_model_len, retrieved.context_length) == ("gpt-4o", 400, 400)
    assert (await api.client.models.retrieve("other/name")).presift["target"] == "target"
    answer = await api.client.chat.completions.create(model="gpt-4o", messages=CHAT, max_tokens=5)
    assert answer.model == "target"
    anything = await open_http_api(stack, aliases="*")
    assert (await anything.client.chat.completions.create(model="x", messages=CHAT, max_tokens=5)).model == "target"
    assert [model.id async for model in await anything.client.models.list()] == ["target"]


async def test_models_have_anthropics_shape_for_anthropics_clients(stack, open_http_api):
    api = await open_http_api(stack, aliases="gpt-4o")
    headers = {"anthropic-version": "2023-06-01"}
    page = (await api.http.get("/v1/models", headers=headers)).json()
    models = page.pop("data")
    assert page == {"has_more": False, "first_id": "target", "last_id": "gpt-4o"}
    assert [(model["type"], model["id"], model["display_name"]) for model in models] == [
        ("model", "target", "target"),
        ("model", "gpt-4o", "gpt-4o"),
    ]
    assert models[0]["created_at"].endswith("Z") and models[0]["max_input_tokens"] == 400
    assert (await api.http.get("/v1/models/gpt-4o", headers=headers)).json() == models[1]


async def test_the_blocking_client(api):
    def ask():
        with api.blocking() as client:
            whole = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5)
            stream = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5, stream=True)
            return whole.choices[0].message.content, "".join(each.choices[0].delta.content or "" for each in stream)

    assert await asyncio.to_thread(ask) == (backwards(RENDERED),) * 2


async def test_langchain(api):
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(
        model=MODEL, base_url=f"{api.url}/v1", api_key="none", max_tokens=5, temperature=0, max_retries=0,
        stream_usage=True, extra_body={"presift": {"route": "full"}},
    )  # fmt: skip
    messages = [("system", "Be brief."), ("user", "abcde")]
    answer = await chat.ainvoke(messages)
    assert answer.content == backwards(RENDERED)
    assert answer.usage_metadata["input_tokens"] == len(RENDERED)
    assert answer.usage_metadata["input_token_details"]["cache_read"] == 3
    assert answer.response_metadata["finish_reason"] == "length"
    pieces = [piece async for piece in chat.astream(messages)]
    assert "".join(piece.content for piece in pieces) == backwards(RENDERED)
    blocks = [{"type": "text", "text": LONG, "document": True}, {"type": "text", "text": "Why?"}]
    await chat.ainvoke([("user", blocks)])
    read = api.stack.tokenizer.backend.decode(list(api.stack.target.calls[-1].token_ids))
    assert read == f"<user>{LONG} Why?</user><assistant>"  # joined as SGLang's server does


async def test_curl(api):
    body = json.dumps({"model": MODEL, "messages": CHAT, "max_tokens": 5, "stream": True})
    command = [
        "curl",
        "-sN",
        "-i",
        f"{api.url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output = (await process.communicate())[0].decode()
    head, _, stream = output.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200") and "text/event-stream" in head and '"route":"full"' in head
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events[-1] == "[DONE]"
    said = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(said) == backwards(RENDERED)
    assert "access-control" not in head.lower() and "server:" not in head.lower()


async def test_a_request_continues_its_callers_trace(api, telemetry):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answered = await api.post({"model": MODEL, "messages": CHAT, "max_tokens": 5}, traceparent=parent)
    assert answered.status_code == 200
    span = next(each for each in telemetry.spans if each.name == "POST /v1/chat/completions")
    assert format(span.context.trace_id, "032x") == parent.split("-")[1]
    assert format(span.parent.span_id, "016x") == parent.split("-")[2]
    assert span.attributes["http.response.status_code"] == 200
    inner = {each.name for each in telemetry.spans if each.context.trace_id == span.context.trace_id}
    assert {"tokenize", "decode"} <= inner
