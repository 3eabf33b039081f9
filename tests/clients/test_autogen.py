"""AutoGen's OpenAIChatCompletionClient and AssistantAgent."""

import openai
import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import StructuredMessage
from autogen_core import CancellationToken
from autogen_core.models import CreateResult, SystemMessage, UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

from .shared import HELLO, MODEL, PERSON, SUM, SUM_ANSWER, TOO_LONG, Adder, Person, say

HI = [SystemMessage(content="Be brief."), UserMessage(content="Hi", source="ada")]
ABILITIES = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
    "multiple_system_messages": True,
}


@pytest.fixture
async def client(base_url):
    options = {"base_url": base_url, "api_key": "none", "model_info": ABILITIES, "max_retries": 0}
    client = OpenAIChatCompletionClient(model=MODEL, include_name_in_message=True, **options)
    yield client
    await client.close()


@pytest.fixture
def adder():
    return Adder()


@pytest.fixture
def add(adder):
    def add(a: int, b: int) -> int:
        return adder.add(a, b)

    return FunctionTool(add, description="Add two integers.", strict=True)


async def test_chat(client):
    answer = await client.create(HI)
    assert answer.content == HELLO
    assert answer.usage.completion_tokens > 0


async def test_stream(client):
    pieces = [piece async for piece in client.create_stream(HI, extra_create_args={"stream_options": USAGE})]
    assert isinstance(pieces[-1], CreateResult)
    assert "".join(pieces[:-1]) == pieces[-1].content == HELLO
    assert pieces[-1].usage.completion_tokens > 0


USAGE = {"include_usage": True}


async def test_structured_output(client):
    assert Person.model_validate_json((await client.create(HI, json_output=Person)).content) == PERSON


async def test_json_output(client):
    messages = [UserMessage(content=say('{"a": 1}'), source="user")]
    assert (await client.create(messages, json_output=True)).content == '{"a": 1}'


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_tools(client, add, choice):
    answer = await client.create(HI, tools=[add], tool_choice=choice)
    assert [(call.name, call.arguments) for call in answer.content] == [("add", '{"a": 2, "b": 3}')]


@pytest.mark.parametrize("streams", [False, True])
async def test_agent(client, add, adder, streams):
    agent = AssistantAgent(
        "helper", client, tools=[add], reflect_on_tool_use=True, model_client_stream=streams, max_tool_iterations=3
    )
    answer = await agent.run(task="What is 2 + 3?")
    assert (answer.messages[-1].content, adder.calls) == (SUM_ANSWER, [(2, 3)])


async def test_agent_without_reflection(client, add, adder):
    answer = await AssistantAgent("helper", client, tools=[add]).run(task="What is 2 + 3?")
    assert answer.messages[-1].content == SUM


async def test_agent_with_structured_output(client):
    answer = await AssistantAgent("helper", client, output_content_type=Person).run(task="Who is Ada?")
    assert isinstance(answer.messages[-1], StructuredMessage)
    assert answer.messages[-1].content == PERSON


async def test_too_long(client):
    with pytest.raises(openai.BadRequestError):
        await client.create([UserMessage(content=TOO_LONG, source="user")], cancellation_token=CancellationToken())
