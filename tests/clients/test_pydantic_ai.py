"""Pydantic AI, with its OpenAI chat, OpenAI responses and Anthropic models."""

import anthropic
import pytest
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from .shared import HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person, say


@pytest.fixture(params=["chat", "responses", "anthropic"])
def model(request, server, base_url):
    if request.param == "anthropic":
        client = anthropic.AsyncAnthropic(base_url=server, api_key="none", max_retries=0)
        profile = ModelProfile(supports_json_schema_output=True)
        return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client), profile=profile)
    provider = OpenAIProvider(base_url=base_url, api_key="none")
    return {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[request.param](MODEL, provider=provider)


async def test_run(model):
    run = await Agent(model, instructions="Be brief.").run("Hi")
    assert run.output == HELLO
    assert run.usage.output_tokens > 0


async def test_stream(model):
    async with Agent(model).run_stream("Hi") as run:
        assert [text async for text in run.stream_text(debounce_by=None)][-1] == HELLO
        assert run.usage.output_tokens > 0


@pytest.mark.parametrize(
    "output", [Person, ToolOutput(Person), NativeOutput(Person)], ids=["default", "tool", "native"]
)
async def test_structured_output(model, output):
    assert (await Agent(model, output_type=output).run("Who is Ada?")).output == PERSON


async def test_prompted_output(model):
    agent = Agent(model, output_type=PromptedOutput(Person))
    assert (await agent.run(say(PERSON.model_dump_json()))).output == PERSON


async def test_structured_output_streamed(model):
    async with Agent(model, output_type=Person).run_stream("Who is Ada?") as run:
        assert [each async for each in run.stream_output(debounce_by=None)][-1] == PERSON


@pytest.mark.parametrize("output", [str, Person], ids=["text", "structured"])
async def test_tools(model, output):
    adder = Adder()
    run = await Agent(model, output_type=output, tools=[adder.add]).run("What is 2 + 3?")
    assert run.output == (SUM_ANSWER if output is str else PERSON)
    assert adder.calls == [(2, 3)]


async def test_tools_streamed(model):
    adder = Adder()
    async with Agent(model, tools=[adder.add]).run_stream("What is 2 + 3?") as run:
        assert await run.get_output() == SUM_ANSWER
    assert adder.calls == [(2, 3)]


async def test_second_turn(model):
    agent = Agent(model)
    first = await agent.run("Hi")
    assert (await agent.run("And now?", message_history=first.all_messages())).output == HELLO


async def test_settings(model):
    settings = {"temperature": 0.3, "top_p": 0.9, "max_tokens": 100, "parallel_tool_calls": False}
    assert (await Agent(model, model_settings=settings).run("Hi")).output == HELLO


async def test_too_long(model):
    with pytest.raises(ModelHTTPError) as refused:
        await Agent(model).run(TOO_LONG)
    assert refused.value.status_code == 400
