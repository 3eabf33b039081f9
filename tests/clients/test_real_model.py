"""The same libraries against a real model in SGLang: chat, stream, structured output, and a loop that calls the tool.

The model has 135 million parameters: what it says is of no interest. A grammar makes it call the tool, with whatever
numbers it likes, and the loop must give it the sum of these.
"""

import json
import os
import subprocess
from enum import Enum

import anthropic
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from .conftest import PYTHON, ROOT, SERVICES, TOKENIZER

MODEL = "model"
ADD = [{"role": "user", "content": "What is 2 + 3?"}]
# Numbers without a bound would go on to the end of the context.
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
PARAMETERS = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS | {"additionalProperties": False}}}
# A grammar of JSON allows white space without end. After some prompts so small a model writes nothing else, after ADD
# it does not.
GREEDY = {"max_tokens": 300, "temperature": 0}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Paint(BaseModel):
    """A paint."""

    colour: Colour
    glossy: bool


@pytest.fixture(scope="module")
def server():
    """The URL of the HTTP API, without /v1."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), SERVICES))}
    command, pipe = [PYTHON, "-m", "tests.clients.real_stack", TOKENIZER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment) as process:
        url = process.stdout.readline().strip()
        assert url, "the stack did not start"
        yield url
        process.stdin.close()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def langchain(server):
    return ChatOpenAI(base_url=f"{server}/v1", api_key="none", model=MODEL, max_retries=0, **GREEDY)


def added(call):
    """The result of the call, if it is one of the tool's."""
    assert set(call) == {"a", "b"} and all(0 <= each <= 99 for each in call.values())
    return str(call["a"] + call["b"])


# --- openai


def test_openai_chat_equals_its_stream(client):
    asked = {"model": MODEL, "messages": ADD, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""


def test_openai_parses_a_model(client):
    answer = client.chat.completions.parse(model=MODEL, messages=ADD, response_format=Paint, **GREEDY)
    assert isinstance(answer.choices[0].message.parsed, Paint)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "add"}}], ids=["any", "named"]
)
def test_openai_tool_loop(client, choice):
    messages, asked = list(ADD), {"model": MODEL, "tools": [TOOL], "max_tokens": 60}
    first = client.chat.completions.create(**asked, messages=messages, tool_choice=choice, parallel_tool_calls=False)
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, first.choices[0].finish_reason) == ("add", "tool_calls")
    messages.append(first.choices[0].message)
    result = added(json.loads(call.function.arguments))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    last = client.chat.completions.create(**asked, messages=messages, tool_choice="none")
    assert last.choices[0].message.content and not last.choices[0].message.tool_calls


def test_openai_responses(client):
    form = {"type": "json_schema", "name": "number", "schema": NUMBER, "strict": True}
    answer = client.responses.create(model=MODEL, input="2 + 3?", text={"format": form}, max_output_tokens=40)
    assert 0 <= json.loads(answer.output_text) <= 99


# --- LangChain


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(langchain, method):
    assert isinstance(langchain.with_structured_output(Paint, method=method).invoke(ADD[0]["content"]), Paint)


def test_langchain_tool_loop(langchain):
    @tool(args_schema=PARAMETERS | {"title": "add", "description": "Add two integers."})
    def add(a: int, b: int) -> int:
        return a + b

    asked = [HumanMessage("What is 2 + 3?")]
    called = langchain.bind_tools([add], tool_choice="any", parallel_tool_calls=False).invoke(asked)
    (call,) = called.tool_calls
    result = ToolMessage(added(call["args"]), tool_call_id=call["id"])
    answer = langchain.bind_tools([add], tool_choice="none").invoke([*asked, called, result])
    assert isinstance(answer, AIMessage) and answer.content


# --- Pydantic AI


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
async def test_pydantic_ai_output(server, kind):
    model = kind(MODEL, provider=OpenAIProvider(base_url=f"{server}/v1", api_key="none"))
    agent = Agent(model, output_type=ToolOutput(Paint), model_settings=GREEDY)
    assert isinstance((await agent.run("A paint?")).output, Paint)


# --- Anthropic


def test_anthropic_tool_loop(server):
    shown = {"name": "add", "input_schema": PARAMETERS}
    chosen = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
    with anthropic.Anthropic(base_url=server, api_key="none", max_retries=0) as client:
        asked = {"model": MODEL, "max_tokens": 60, "tools": [shown]}
        first = client.messages.create(**asked, messages=ADD, tool_choice=chosen)
        (call,) = [block for block in first.content if block.type == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": added(call.input)}
        messages = [*ADD, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        last = client.messages.create(**asked, messages=messages, tool_choice={"type": "none"})
    assert first.stop_reason == "tool_use" and last.content[0].text
