"""/v1/responses with OpenAI's own client: answers and streams that its models accept, tools, reasoning, errors."""

import json

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from ..fakes.http_api import MODEL
from ..fakes.scripted import call, can_restrict, says, shows_calls
from ..fakes.stack import ALL_ROUTES

RENDERED = "<system>Be brief.</system><user>abcde</user><assistant>"
ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True, "description": "adds"}
EVENT = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
async def api(build, open_http_api):
    stack = await build(routes=ALL_ROUTES)
    can_restrict(stack.target)
    return await open_http_api(await stack.connect())


async def whole(api, **body):
    """A response that OpenAI's model accepts without guessing."""
    answer = await api.client.responses.create(model=MODEL, **body)
    Response.model_validate(answer.model_dump(by_alias=True))
    return answer


async def streamed(api, **body):
    """The events of a stream, each as OpenAI's models have it."""
    events = [event async for event in await api.client.responses.create(model=MODEL, stream=True, **body)]
    for event in events:
        EVENT.validate_python(event.model_dump(by_alias=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def kinds(events):
    return [event.type.removeprefix("response.") for event in events]


async def test_a_text(api):
    answer = await whole(api, input="abcde", instructions="Be brief.", max_output_tokens=5, metadata={"a": "b"})
    assert answer.id.startswith("resp_") and answer.model == "target" and answer.object == "response"
    assert answer.output_text == RENDERED[::-1][:5]
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.metadata == {"a": "b"} and answer.instructions == "Be brief." and answer.store is False
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (len(RENDERED), 5, len(RENDERED) + 5)
    assert usage.input_tokens_details.cached_tokens == 3
    assert answer.presift["decision"]["route"] == "full"


async def test_a_text_in_a_stream(api):
    says(api.stack.target, "Hel", "lo")
    events = await streamed(api, input="abcde", instructions="Be brief.")
    assert kinds(events) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
    final = events[-1].response
    assert final.output_text == "Hello" and final.status == "completed" and final.usage.output_tokens == 2
    assert final.presift["decision"]["prompt_tokens"] == len(RENDERED)
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {final.output[0].id}


async def test_the_clients_own_accumulation(api):
    says(api.stack.target, "Hel", "lo", call(0, id="c1", name="add", arguments='{"a": 1}'))
    async with api.client.responses.stream(model=MODEL, input="abcde", tools=[ADD]) as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Hello"
    assert final.output[1].parsed_arguments == {"a": 1}


async def test_reasoning_text_and_two_calls(api):
    pieces = [
        *(("reasoning", "Let me "), ("reasoning", "see."), "\n\n"),
        *(call(0, id="c1", name="add"), call(0, arguments='{"a":'), call(0, arguments="1}")),
        *(call(1, id="c2", name="add", arguments="{}"), "Done."),
    ]
    says(api.stack.target, *pieces, reasoning_tokens=2)
    request = {"input": "abcde", "tools": [ADD], "tool_choice": "auto"}
    answer, events = await whole(api, **request), await streamed(api, **request)
    for each in (answer, events[-1].response):
        reasoning, first, second, text = each.output
        assert reasoning.content[0].text == "Let me see." and reasoning.summary == []
        assert (first.call_id, first.name, first.arguments, first.status) == ("c1", "add", '{"a":1}', "completed")
        assert (second.call_id, second.arguments) == ("c2", "{}")
        assert text.content[0].text == "Done."
        assert each.usage.output_tokens_details.reasoning_tokens == 2
        assert each.tools[0].name == "add" and each.tool_choice == "auto"
    assert kinds(events)[2:12] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
    ]


async def test_a_loop_of_tools_comes_back_as_it_was(api):
    shows_calls(api.stack)
    says(api.stack.target, call(0, id="c1", name="add", arguments='{"a": 1}'))
    history = [{"role": "user", "content": "abcde"}]
    answer = await whole(api, input=history, tools=[ADD])
    history += [item.model_dump() for item in answer.output]
    history.append({"type": "function_call_output", "call_id": "c1", "output": "2"})
    says(api.stack.target, "It is 2.")
    answer = await whole(api, input=history, tools=[ADD])
    assert answer.output_text == "It is 2."
    history += [item.model_dump(exclude_none=True) for item in answer.output]
    history.append({"role": "user", "content": [{"type": "input_text", "text": "Thanks", "protected": True}]})
    await whole(api, input=history, tools=[ADD])
    read = api.stack.tokenizer.backend.decode(list(api.stack.target.calls[-1].token_ids))
    assert '<call>add{"a": 1}</call>' in read
    for text in ("<user>abcde</user>", "<tool>2</tool>", "<assistant>It is 2.</assistant>", "<user>Thanks</user>"):
        assert text in read


async def test_an_answer_without_text_has_an_empty_message(api):
    says(api.stack.target)
    answer = await whole(api, input="abcde")
    assert answer.output[0].type == "message" and answer.output_text == ""


async def test_presift_options_work_here(api):
    long = "".join(chr(97 + i % 26) for i in range(100))
    items = [{"role": "user", "content": long}, {"role": "user", "content": [{"type": "input_text", "text": "why?"}]}]
    presift = {"route": "spec_pc", "documents": [{"message": 0}], "budget": {"max_prompt_tokens": 120}}
    raw = await api.client.responses.with_raw_response.create(
        model=MODEL, instructions="Be brief.", input=items, max_output_tokens=3, extra_body={"presift": presift}
    )
    assert json.loads(raw.headers["presift-decision"])["route"] == "spec_pc"
    assert raw.parse().presift["decision"]["kept_tokens"] <= 120
    explained = await whole(api, input=long, extra_body={"presift": {"explain": True}})
    assert explained.output == [] and explained.presift["explanation"]


REFUSED = {
    "previous_response_id": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "conversation": ({"conversation": "c"}, "conversation"),
    "background": ({"background": True}, "background"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "a prompt of the service": ({"prompt": {"id": "p"}}, "prompt"),
    "unknown below presift": ({"extra_body": {"presift": {"colour": 1}}}, "presift.colour"),
    "max_tokens": ({"extra_body": {"max_tokens": 1}}, "max_tokens"),
    "a temperature": ({"temperature": 3}, "temperature"),
    "a penalty": ({"extra_body": {"presence_penalty": 3}}, "presence_penalty"),
    "two grammars": ({"text": {"format": {"type": "json_object"}}, "extra_body": {"regex": "a"}}, "regex"),
    "a regex and a forced call": ({"tools": [ADD], "tool_choice": "required", "extra_body": {"regex": "a"}}, "regex"),
    "a schema": ({"text": {"format": {"type": "json_schema", "name": "n", "schema": [1]}}}, "text.format.schema"),
    "a tool that is not there": (
        {"tools": [ADD], "tool_choice": {"type": "function", "name": "sub"}},
        "tool_choice.name",
    ),
    "a forced call without tools": ({"tool_choice": "required"}, "tool_choice"),
    "a web search": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "a picture": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
    ),
    "an unknown item": ({"input": [{"role": "user", "content": "a"}, {"type": "mcp_call"}]}, "input[1].type"),
    "no input": ({"input": []}, "input"),
    "a schema without a name": ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    "too many tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
    "a broken call": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "", "arguments": "{}"}], "tools": [ADD]},
        "input[0].tool_calls[0]",
    ),
    "a reference": ({"extra_body": {"presift": {"protected": [{"message": 7}]}}}, "presift.protected[0].message"),
    "logprobs of the prompt": ({"extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs"),
    "logprobs": ({"include": ["message.output_text.logprobs"]}, "include[0]"),
}


@pytest.mark.parametrize(("body", "param"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_is_named(api, body, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await api.client.responses.create(**{"model": MODEL, "input": "abc", **body})
    assert refused.value.body["param"] == param
    assert api.stack.target.calls == []


async def test_an_unknown_model(api):
    with pytest.raises(openai.NotFoundError):
        await api.client.responses.create(model="other", input="a")


async def test_neutral_values_are_accepted(api):
    await whole(
        api,
        input=[{"type": "message", "role": "developer", "content": "a"}, {"role": "user", "content": "b"}],
        background=False,
        include=["reasoning.encrypted_content"],
        parallel_tool_calls=True,
        reasoning={"summary": "auto"},
        service_tier="auto",
        store=True,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        stream_options={"include_obfuscation": False},
        extra_body={"response_format": {"type": "text"}, "previous_response_id": "", "stop": ""},
        tool_choice="auto",
        tools=[ADD],
        top_logprobs=0,
        top_p=0.9,
        truncation="disabled",
        user="u",
        prompt_cache_key="k",
    )


async def test_what_is_asked_reaches_the_target(api):
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    await whole(api, input="a", text={"format": schema}, extra_body={"top_k": 3, "colour": 1, "min_p": 0.5})
    sampling = api.stack.target.calls[-1].sampling
    assert sampling.json_schema == '{"type": "object"}' and sampling.top_k == 3 and sampling.min_p == 0.5
    answer = await whole(api, input="a", extra_body={"colour": 1})
    assert answer.presift["ignored"] == ["colour"]
    await whole(api, input="a", tools=[ADD], tool_choice={"type": "function", "name": "add"})
    asked = api.stack.target.calls[-1].format
    assert asked.function == "add" and "adds" in asked.tools_json[0]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add"}])
async def test_a_forced_call_wins_over_a_format(api, choice):
    """instructor's RESPONSES_TOOLS sends both."""
    answer = await whole(
        api, input="a", tools=[ADD], tool_choice=choice, text={"format": {"type": "json_object"}, "verbosity": None}
    )
    assert answer.presift["ignored"] == ["text.format"]
    asked = api.stack.target.calls[-1]
    assert asked.format.tool_choice > 1 and not asked.sampling.json_schema


async def test_a_stream_that_fails_says_so(api):
    api.stack.target.die_after = 2
    events = await streamed(api, input="abcde", max_output_tokens=5)
    error, failed = events[-2:]
    assert (error.type, failed.type) == ("error", "response.failed")
    assert failed.response.status == "failed" and failed.response.error.code == "server_error"
    assert failed.response.output[0].status == "incomplete"


async def test_an_error_before_the_first_token_has_its_status(api):
    api.stack.target.die_after = None
    with pytest.raises(openai.APIStatusError) as refused:
        await api.client.responses.create(
            model=MODEL, input="a", stream=True, extra_headers={"presift-timeout-s": "nope"}
        )
    assert refused.value.status_code == 400


async def test_the_context_cuts_max_output_tokens(api):
    answer = await whole(api, input="abc", max_output_tokens=128_000)
    asked = api.stack.target.calls[-1]
    assert asked.sampling.max_new_tokens == 400 - len(asked.token_ids) and answer.output_text
