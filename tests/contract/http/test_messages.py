"""/v1/messages as Anthropic documents it: answers, streams, tools, thinking, errors.

Their package is not a dependency; `tests/clients` runs the real one.
"""

import copy
import json

import pytest

from ..fakes.http_api import MODEL
from ..fakes.scripted import call, can_restrict, says, shows_calls
from ..fakes.stack import ALL_ROUTES

RENDERED = "<system>Be brief.</system><user>abcde</user><assistant>"
ADD = {"name": "add", "description": "adds", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
ASK = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "abcde"}]}
HEADERS = {"anthropic-version": "2023-06-01", "x-api-key": "none"}


@pytest.fixture
async def api(build, open_http_api):
    stack = await build(routes=ALL_ROUTES)
    can_restrict(stack.target)
    return await open_http_api(await stack.connect())


async def post(api, body, path="/v1/messages"):
    return await api.http.post(path, json=body, headers=HEADERS)


async def whole(api, **body):
    answer = await post(api, ASK | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def streamed(api, **body):
    """The events of a stream, in the order that Anthropic's clients rely on."""
    events = []
    async with api.http.stream("POST", "/v1/messages", json=ASK | {"stream": True} | body, headers=HEADERS) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines() if line]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def accumulated(events):
    """As Anthropic's own client does it."""
    assert events[0]["type"] == "message_start" and events[-1] == {"type": "message_stop"}
    message, buffers, closed = copy.deepcopy(events[0]["message"]), {}, set()
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"]) == len(closed)
                message["content"].append(event["content_block"])
                buffers[event["index"]] = ""
            case "content_block_delta":
                kind, *_ = (value for key, value in event["delta"].items() if key != "type")
                buffers[event["index"]] += kind
            case "content_block_stop":
                closed.add(event["index"])
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    for at, block in enumerate(message["content"]):
        if block["type"] == "tool_use":
            block["input"] = json.loads(buffers[at] or "{}")
        else:
            block[block["type"]] = buffers[at]
    return message


def timeless(message):
    return {name: value for name, value in message.items() if name not in ("id", "presift")}


async def test_a_text(api):
    message = await whole(api, system="Be brief.")
    assert message["id"].startswith("msg_") and message["type"] == "message" and message["role"] == "assistant"
    assert message["model"] == "target"
    assert message["content"] == [{"type": "text", "text": RENDERED[::-1][:5], "citations": None}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    assert message["usage"] == {
        "input_tokens": len(RENDERED) - 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 5,
    }
    assert message["presift"]["decision"]["route"] == "full"


async def test_a_stream_is_the_same_message(api):
    pieces = [
        *(("reasoning", "Let me "), ("reasoning", "see."), "\n\nWell", ".", "\n\n"),
        *(call(0, id="c1", name="add"), call(0, arguments='{"a":'), call(0, arguments="1}")),
        call(1, id="c2", name="add", arguments="{}"),
    ]
    says(api.stack.target, *pieces, finish="tool_calls")
    request = {"tools": [ADD], "tool_choice": {"type": "auto"}, "max_tokens": 20}
    message, events = await whole(api, **request), await streamed(api, **request)
    assert timeless(accumulated(events)) == timeless(message)
    thinking, text, first, second = message["content"]
    assert thinking == {"type": "thinking", "thinking": "Let me see.", "signature": ""}
    assert text["text"] == "\n\nWell.\n\n"
    assert first == {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}
    assert second["input"] == {} and message["stop_reason"] == "tool_use"
    sent = api.stack.target.calls[-1].token_ids
    assert events[0]["message"]["usage"]["input_tokens"] - 3 == events[-2]["usage"]["input_tokens"] == len(sent) - 3
    assert events[-2]["presift"]["decision"]["route"] == "full"


@pytest.mark.parametrize(
    "arguments", ['{"a": NaN}', '{"a": -1e999}', '{"a"', "[" * 9_000, "3", '{"a": ' + "9" * 5_000 + "}"]
)
async def test_arguments_that_are_no_json_object_leave_none(api, arguments):
    """A model may write what no client can read: the body is JSON still."""
    says(api.stack.target, call(0, id="c1", name="add", arguments=arguments), finish="tool_calls")
    content = (await whole(api, tools=[ADD], max_tokens=20))["content"]
    assert [block["input"] for block in content] == [{}]


@pytest.mark.parametrize(("finish", "reason"), [("stop", "end_turn"), ("length", "max_tokens")])
async def test_why_it_stopped(api, finish, reason):
    says(api.stack.target, "ok", finish=finish)
    assert (await whole(api))["stop_reason"] == reason
    assert accumulated(await streamed(api))["stop_reason"] == reason


async def test_the_stop_sequence_is_named(api):
    def stops(usage):
        usage.finish_reason = 1

    api.stack.target.spoil = stops
    message = await whole(api, stop_sequences=["never", "dcb"], messages=[{"role": "user", "content": "xbcd"}])
    api.stack.target.answer = lambda request: [each + 0 for each in api.stack.tokenizer.backend.encode("xdcbx").ids]
    message = await whole(api, stop_sequences=["never", "dcb"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "dcb")
    assert message["content"][0]["text"] == "x"
    assert list(api.stack.target.calls[-1].sampling.stop) == ["never", "dcb"]


async def test_a_loop_of_tools_comes_back_as_it_was(api):
    shows_calls(api.stack)
    says(api.stack.target, ("reasoning", "Hm."), "Adding.", call(0, id="c1", name="add", arguments='{"a": 1}'))
    answer = await whole(api, tools=[ADD])
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "2"}], "is_error": False}
    says(api.stack.target, "It is 2.")
    await whole(
        api,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        tools=[ADD],
        messages=[
            *ASK["messages"],
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [{"type": "text", "text": "Here:"}, result, {"type": "text", "text": "So?"}]},
        ],
    )
    read = api.stack.tokenizer.backend.decode(list(api.stack.target.calls[-1].token_ids))
    assert read.endswith(
        "<system>Be brief.</system><user>abcde</user>"
        '<assistant>Adding.<call>add{"a": 1}</call></assistant>'
        "<user>Here:</user><tool>2</tool><user>So?</user><assistant>"
    )


async def test_what_is_asked_reaches_the_target(api):
    await whole(api, tools=[ADD], tool_choice={"type": "any", "disable_parallel_tool_use": True}, top_k=3, top_p=0.5)
    asked = api.stack.target.calls[-1]
    assert asked.sampling.top_k == 3 and asked.sampling.top_p == 0.5
    assert asked.format.tool_choice == 2 and asked.format.single_call
    await whole(api, tools=[ADD], tool_choice={"type": "tool", "name": "add"})
    assert api.stack.target.calls[-1].format.function == "add"
    await whole(api, output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    assert api.stack.target.calls[-1].sampling.json_schema == '{"type": "object"}'
    message = await whole(api, tools=[ADD], tool_choice={"type": "none"}, colour=1, metadata={"user_id": "u"})
    assert not api.stack.target.calls[-1].format.tools_json and message["presift"]["ignored"] == ["colour"]


async def test_thinking_is_the_templates_matter(api):
    enabled = {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    seen, plain = [], api.stack.tokenizer.renderer.template

    def template(messages, tools, **variables):
        seen.append(variables)
        return plain(messages, tools)

    refused = await post(api, ASK | enabled)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "thinking.type")
    assert refused.json()["error"]["message"].startswith(
        "thinking.type is 'enabled'; it must be left out: the target's"
    )
    message = await whole(api, thinking={"type": "adaptive"})
    assert message["presift"]["ignored"] == ["thinking"]
    await whole(api, thinking={"type": "disabled"})
    api.stack.tokenizer.renderer.template = template
    api.stack.tokenizer.template_variables = frozenset({"enable_thinking"})
    for thinking, is_on in (({"type": "adaptive"}, True), ({"type": "disabled"}, False)):
        await whole(api, thinking=thinking)
        assert seen[-1]["variables"] == {"enable_thinking": is_on}, seen[-1]


async def test_presift_options_work_here(api):
    long = {"type": "text", "text": "".join(chr(97 + i % 26) for i in range(100))}
    question = {"type": "text", "text": "why?", "protected": True}
    presift = {"route": "spec_pc", "documents": [{"message": 0, "part": 0}], "budget": {"max_prompt_tokens": 120}}
    answer = await post(api, ASK | {"messages": [{"role": "user", "content": [long, question]}], "presift": presift})
    assert json.loads(answer.headers["presift-decision"])["route"] == "spec_pc"
    explained = await whole(api, presift={"explain": True})
    assert explained["content"] == [] and explained["presift"]["explanation"]


async def test_counting_tokens(api):
    body = {name: value for name, value in ASK.items() if name != "max_tokens"}
    answer = await post(api, body | {"system": "Be brief."}, "/v1/messages/count_tokens")
    assert answer.json() == {"input_tokens": len(RENDERED)}
    with_tools = await post(api, body | {"tools": [ADD]}, "/v1/messages/count_tokens")
    assert with_tools.json()["input_tokens"] > len(RENDERED) and api.stack.target.calls == []
    assert api.stack.admission.running == 0


PICTURE = {"type": "image", "source": {"type": "base64", "data": "", "media_type": "image/png"}}
RESULT = {"type": "tool_result", "tool_use_id": "c"}
REFUSED = {
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "no messages": ({"messages": []}, "messages"),
    "a picture": ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content[0].type"),
    "a picture of a tool": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [PICTURE]}]}
            ]
        },
        "messages[0].content[0].content[0].type",
    ),
    "a tool of Anthropic's": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    "a temperature": ({"temperature": 3}, "temperature"),
    "an empty stop sequence": ({"stop_sequences": [""]}, "stop_sequences"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    "a choice without tools": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "a tool that is not there": (
        {"tools": [ADD], "tool_choice": {"type": "tool", "name": "sub"}},
        "tool_choice.name",
    ),
    "hidden thinking": ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display"),
    "a budget without thinking": ({"thinking": {"type": "adaptive", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    "a container": ({"container": "c"}, "container"),
    "a stored thread": ({"thread": {"type": "create"}}, "thread"),
    "OpenAI's stop": ({"stop": ["a"]}, "stop"),
    "a reference": ({"presift": {"documents": [{"message": 1}]}}, "presift.documents[0].message"),
    "a route": ({"presift": {"route": "x"}}, "presift.route"),
}


@pytest.mark.parametrize(("body", "param"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_is_named(api, body, param):
    answer = await post(api, ASK | body)
    refusal = answer.json()
    assert answer.status_code == 400 and refusal["type"] == "error"
    assert (refusal["error"]["type"], refusal["error"]["param"]) == ("invalid_request_error", param)
    assert api.stack.target.calls == []


async def test_a_stored_thread_is_refused_as_anthropics_library_expects(api):
    """It then sends the whole conversation. Ignored, all but the last message would be lost."""
    refusal = (await post(api, ASK | {"thread": {"type": "continue", "previous_message_id": "m"}})).json()
    assert refusal["error"]["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


@pytest.mark.parametrize("given", [{"edits": []}, {"edits": None}, {}, None])
async def test_edits_of_no_context_ask_for_nothing(api, given):
    assert (await post(api, ASK | {"context_management": given})).status_code == 200


async def test_errors_have_anthropics_types(api):
    unknown = await post(api, ASK | {"model": "other"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    long = await post(api, ASK | {"messages": [{"role": "user", "content": "a" * 500}]})
    assert long.json()["error"]["message"].startswith("prompt is too long: ")
    large = await post(api, ASK | {"system": "a" * 2**20})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


async def test_a_deadline_and_a_disconnect_leave_nothing_behind(api):
    stack = api.stack
    stack.target.pause_after = 1
    late = await api.http.post("/v1/messages", json=ASK, headers=HEADERS | {"presift-timeout-s": "0.2"})
    assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
    async with api.http.stream("POST", "/v1/messages", json=ASK | {"stream": True}, headers=HEADERS) as answer:
        assert await anext(answer.aiter_lines()) == "event: message_start"
    await stack.settle(lambda: stack.target.running == stack.server.calls.running == stack.admission.running == 0)


async def test_a_stream_that_fails_says_so(api):
    api.stack.target.die_after = 2
    *_, last = await streamed(api)
    assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")


async def test_the_context_cuts_the_number_that_libraries_fill_in(api):
    """`max_tokens` is required here: coding agents send 32,000 to 128,000 to every model."""
    message = await whole(api, max_tokens=128_000)
    asked = api.stack.target.calls[-1]
    assert asked.sampling.max_new_tokens == 400 - len(asked.token_ids)
    assert message["stop_reason"] in ("end_turn", "max_tokens")
