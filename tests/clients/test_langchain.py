"""LangChain's ChatOpenAI and its agents."""

from typing import TypedDict

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

from .shared import HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person, say


@pytest.fixture
def model(base_url):
    """options -> a chat model."""

    def model(**options):
        return ChatOpenAI(base_url=base_url, api_key="none", model=MODEL, max_retries=0, **options)

    return model


@pytest.fixture
def adder():
    return Adder()


@pytest.fixture
def add(adder):
    @tool
    def add(a: int, b: int) -> int:
        """Add two integers."""
        return adder.add(a, b)

    return add


def test_chat(model):
    answer = model().invoke("Hi")
    assert (answer.content, answer.response_metadata["finish_reason"]) == (HELLO, "stop")
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(model):
    chunks = list(model(stream_usage=True).stream("Hi"))
    assert "".join(chunk.content for chunk in chunks) == HELLO
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


async def test_batch(model):
    assert [each.content for each in await model().abatch([say("one"), say("two")])] == ["one", "two"]


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


@pytest.mark.parametrize("strict", [None, True, False])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model, method, strict):
    assert model().with_structured_output(Person, method=method, strict=strict).invoke("Ada, 36") == PERSON


def test_structured_output_of_other_schemas(model):
    for schema in (PersonDict, Person.model_json_schema()):
        assert model().with_structured_output(schema).invoke("Ada, 36") == PERSON.model_dump()


def test_structured_output_with_the_raw_answer(model):
    answer = model().with_structured_output(Person, include_raw=True).invoke("Ada, 36")
    assert (answer["parsed"], answer["parsing_error"]) == (PERSON, None)


def test_structured_output_in_json_mode(model):
    structured = model().with_structured_output(Person, method="json_mode")
    assert structured.invoke(say(PERSON.model_dump_json())) == PERSON


def test_structured_output_streamed(model):
    assert list(model().with_structured_output(Person).stream("Ada, 36"))[-1] == PERSON


@pytest.mark.parametrize("choice", ["auto", "any", "required", "add", True])
def test_bound_tools(model, add, choice):
    answer = model().bind_tools([add], tool_choice=choice).invoke("What is 2 + 3?")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 2, "b": 3})]


def test_bound_tools_streamed(model, add):
    chunks = list(model().bind_tools([add], strict=True, parallel_tool_calls=False).stream("What is 2 + 3?"))
    answer = sum(chunks[1:], start=chunks[0])
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 2, "b": 3})]


def test_agent(model, add, adder):
    answer = create_agent(model(), [add]).invoke({"messages": [HumanMessage("What is 2 + 3?")]})
    assert (answer["messages"][-1].content, adder.calls) == (SUM_ANSWER, [(2, 3)])


def test_agent_streamed(model, add, adder):
    agent = create_agent(model(), [add])
    pieces = agent.stream({"messages": [HumanMessage("What is 2 + 3?")]}, stream_mode="messages")
    text = "".join(piece.content for piece, _ in pieces if piece.type == "AIMessageChunk")
    assert (text, adder.calls) == (SUM_ANSWER, [(2, 3)])


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_agent_with_structured_output(model, add, adder, strategy):
    class FinalPerson(Person):
        """The final answer."""

    agent = create_agent(model(), [add], response_format=strategy(FinalPerson))
    answer = agent.invoke({"messages": [HumanMessage("What is 2 + 3? Then say who Ada is.")]})
    assert answer["structured_response"].model_dump() == PERSON.model_dump()
    assert adder.calls == [(2, 3)]


def test_sampling(model):
    options = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "presence_penalty": 0.1, "frequency_penalty": 0.1}
    assert model(**options, max_tokens=50, stop=["zzz"]).invoke("Hi").content == HELLO


def test_log_probabilities(model):
    answer = model(logprobs=True, top_logprobs=2).invoke("Hi")
    assert "".join(each["token"] for each in answer.response_metadata["logprobs"]["content"]) == HELLO


def test_several_choices(model):
    assert [each.text for each in model(n=2).generate([[HumanMessage("Hi")]]).generations[0]] == [HELLO, HELLO]


def test_completions(base_url):
    model = OpenAI(base_url=base_url, api_key="none", model=MODEL)
    assert model.invoke("Hi") == HELLO
    assert "".join(model.stream("Hi")) == HELLO
    assert model.batch([say("one"), say("two")]) == ["one", "two"]


def test_responses_api(model, add):
    responses = model(use_responses_api=True, output_version="responses/v1")
    assert responses.invoke("Hi").text == HELLO
    assert "".join(chunk.text for chunk in responses.stream("Hi")) == HELLO
    answer = responses.bind_tools([add]).invoke("What is 2 + 3?")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 2, "b": 3})]


def test_too_long(model):
    with pytest.raises(openai.BadRequestError) as refused:
        model().invoke(TOO_LONG)
    assert isinstance(refused.value, ContextOverflowError)
