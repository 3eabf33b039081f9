"""smolagents: its OpenAI model, tool-calling agents and code agents."""

import json

import openai
import pytest
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage, MessageRole

from .shared import HELLO, MODEL, PERSON, TOO_LONG, Adder, Person, say

HI = [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": "Hi"}])]


@pytest.fixture
def model(base_url):
    return OpenAIModel(MODEL, api_base=base_url, api_key="none", client_kwargs={"max_retries": 0})


@pytest.fixture
def adder():
    return Adder()


@pytest.fixture
def add(adder):
    @tool
    def add(a: int, b: int) -> int:
        """Add two integers.

        Args:
            a: the first
            b: the second
        """
        return adder.add(a, b)

    return add


def test_chat(model):
    answer = model.generate(HI)
    assert answer.content == HELLO
    assert answer.token_usage.output_tokens > 0


def test_stream(model):
    assert "".join(piece.content or "" for piece in model.generate_stream(HI)) == HELLO


def test_structured_output(model):
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    assert Person.model_validate_json(model.generate(HI, response_format=schema).content) == PERSON


@pytest.mark.parametrize("streams", [False, True])
def test_tool_calling_agent(model, add, adder, streams):
    agent = ToolCallingAgent([add], model, max_steps=3, stream_outputs=streams, verbosity_level=0)
    assert str(agent.run("What is 2 + 3?")) == "5"
    assert adder.calls == [(2, 3)]


@pytest.mark.parametrize("structured", [False, True])
def test_code_agent(model, add, adder, structured):
    code = "final_answer(add(2, 3))"
    text = f"Thought: add them\n<code>\n{code}\n</code>"
    if structured:
        text = json.dumps({"thought": "add them", "code": code})
    agent = CodeAgent([add], model, max_steps=2, use_structured_outputs_internally=structured, verbosity_level=0)
    assert str(agent.run(say(text))) == "5"
    assert adder.calls == [(2, 3)]


def test_too_long(model):
    with pytest.raises(openai.BadRequestError):
        model.generate([ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": TOO_LONG}])])
