"""OpenAI's Agents SDK, over chat completions and over its default, responses."""

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

from .shared import HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person

set_tracing_disabled(True)


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"])
async def model(request, base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield request.param(model=MODEL, openai_client=client)


@pytest.fixture
def adder():
    return Adder()


@pytest.fixture
def add(adder):
    @function_tool
    def add(a: int, b: int) -> int:
        """Add two integers."""
        return adder.add(a, b)

    return add


async def test_run(model):
    run = await Runner.run(Agent("helper", instructions="Be brief.", model=model), "Hi")
    assert run.final_output == HELLO
    assert run.context_wrapper.usage.output_tokens > 0


async def test_stream(model):
    run = Runner.run_streamed(Agent("helper", model=model), "Hi")
    events = [event async for event in run.stream_events()]
    raw = [event.data for event in events if event.type == "raw_response_event"]
    texts = [each.delta for each in raw if each.type == "response.output_text.delta"]
    assert ("".join(texts), run.final_output) == (HELLO, HELLO)


async def test_output_type(model):
    run = await Runner.run(Agent("helper", model=model, output_type=Person), "Who is Ada?")
    assert run.final_output == PERSON


async def test_tools(model, add, adder):
    run = await Runner.run(Agent("helper", model=model, tools=[add]), "What is 2 + 3?")
    assert (run.final_output, adder.calls) == (SUM_ANSWER, [(2, 3)])


async def test_tools_streamed(model, add, adder):
    run = Runner.run_streamed(Agent("helper", model=model, tools=[add]), "What is 2 + 3?")
    async for _ in run.stream_events():
        pass
    assert (run.final_output, adder.calls) == (SUM_ANSWER, [(2, 3)])


async def test_forced_tool(model, add, adder):
    settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, temperature=0.3, max_tokens=100)
    run = await Runner.run(Agent("helper", model=model, tools=[add], model_settings=settings), "What is 2 + 3?")
    assert (run.final_output, adder.calls) == (SUM_ANSWER, [(2, 3)])


async def test_handoff(model):
    other = Agent("other", instructions="You are the other.", model=model)
    run = await Runner.run(Agent("helper", model=model, handoffs=[other]), "Hi")
    assert run.last_agent.name == "other"


async def test_second_turn(model):
    agent = Agent("helper", model=model)
    first = await Runner.run(agent, "Hi")
    second = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "And now?"}])
    assert second.final_output == HELLO


async def test_too_long(model):
    with pytest.raises(openai.BadRequestError):
        await Runner.run(Agent("helper", model=model), TOO_LONG)
