"""OpenAI's own library: the Responses API."""

import json

import openai
import pytest

from .shared import ADD_TOOL, HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person


@pytest.fixture
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def test_response(client):
    answer = client.responses.create(model=MODEL, input="Hi", instructions="Be brief.")
    assert (answer.output_text, answer.status) == (HELLO, "completed")
    assert answer.usage.total_tokens > 0


def test_response_streamed(client):
    events = list(client.responses.create(model=MODEL, input="Hi", stream=True))
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == HELLO
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_response_parsed(client):
    assert client.responses.parse(model=MODEL, input="Hi", text_format=Person).output_parsed == PERSON


def test_response_with_tools(client):
    adder = Adder()
    tool = {"type": "function", "name": "add", "strict": True, "parameters": ADD_TOOL["function"]["parameters"]}
    items = [{"role": "user", "content": "What is 2 + 3?"}]
    answer = client.responses.create(model=MODEL, input=items, tools=[tool])
    (call,) = (each for each in answer.output if each.type == "function_call")
    result = adder.add(**json.loads(call.arguments))
    items += [*answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": str(result)}]
    assert client.responses.create(model=MODEL, input=items, tools=[tool]).output_text == SUM_ANSWER
    assert adder.calls == [(2, 3)]


def test_response_with_tools_streamed(client):
    tool = {"type": "function", "name": "add", "parameters": ADD_TOOL["function"]["parameters"]}
    with client.responses.stream(model=MODEL, input="What is 2 + 3?", tools=[tool]) as stream:
        events = list(stream)
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [{"a": 2, "b": 3}]


def test_too_long(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input=TOO_LONG)
    assert refused.value.code == "context_length_exceeded"


def test_reasoning_is_an_item(client):
    answer = client.responses.create(model=MODEL, input="THINK")
    assert [each.type for each in answer.output] == ["reasoning", "message"]
    assert answer.output_text.strip() == HELLO


def test_stored_answers_are_refused_by_name(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="Hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
