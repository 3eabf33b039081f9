"""LlamaIndex's OpenAILike."""

import openai
import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from .shared import HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person, say

HI = [ChatMessage(role="user", content="Hi")]
SUM_QUESTION = "What is 2 + 3?"


@pytest.fixture
def model(base_url):
    def model(**options):
        values = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 4096} | options
        return OpenAILike(model=MODEL, api_base=base_url, api_key="none", max_retries=0, **values)

    return model


@pytest.fixture
def adder():
    return Adder()


@pytest.fixture
def add(adder):
    def add(a: int, b: int) -> int:
        """Add two integers."""
        return adder.add(a, b)

    return FunctionTool.from_defaults(add)


def test_chat(model):
    answer = model().chat(HI)
    assert answer.message.content == HELLO
    assert answer.raw.usage.completion_tokens > 0


def test_stream(model):
    assert "".join(piece.delta for piece in model().stream_chat(HI)) == HELLO


async def test_asynchronous_stream(model):
    assert "".join([piece.delta async for piece in await model().astream_chat(HI)]) == HELLO


def test_completion(model):
    for is_chat_model in (True, False):
        assert model(is_chat_model=is_chat_model).complete("Hi").text == HELLO
        assert [*model(is_chat_model=is_chat_model).stream_complete("Hi")][-1].text == HELLO


def test_structured_predict(model):
    assert model().structured_predict(Person, PromptTemplate("Who is {name}?"), name="Ada") == PERSON


def test_structured_predict_streamed(model):
    pieces = model().stream_structured_predict(Person, PromptTemplate("Who is {name}?"), name="Ada")
    assert list(pieces)[-1].model_dump() == PERSON.model_dump()


def test_structured_llm(model):
    assert model().as_structured_llm(Person).chat(HI).raw == PERSON


def test_structured_output_by_json_schema(model):
    structured = model(should_use_structured_outputs=True).as_structured_llm(Person)
    assert structured.chat(HI).raw == PERSON


def test_programs(model):
    by_call = FunctionCallingProgram.from_defaults(Person, prompt_template_str="Who is {x}?", llm=model())
    assert by_call(x="Ada") == PERSON
    by_text = LLMTextCompletionProgram.from_defaults(
        output_cls=Person, prompt_template_str="{text}", llm=model(is_function_calling_model=False)
    )
    assert by_text(text=say(PERSON.model_dump_json())) == PERSON


def test_predict_and_call(model, add, adder):
    answer = model().predict_and_call([add], user_msg=SUM_QUESTION)
    assert (str(answer), adder.calls) == ("5", [(2, 3)])


def test_forced_call(model, add):
    answer = model().chat_with_tools([add], user_msg=SUM_QUESTION, tool_required=True)
    calls = model().get_tool_calls_from_response(answer)
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("add", {"a": 2, "b": 3})]


@pytest.mark.parametrize("streaming", [True, False])
async def test_agent(model, add, adder, streaming):
    answer = await FunctionAgent(tools=[add], llm=model(), streaming=streaming).run(SUM_QUESTION)
    assert (str(answer), adder.calls) == (SUM_ANSWER, [(2, 3)])


async def test_react_agent(model, add):
    said = "Thought: I can answer without using any more tools.\nAnswer: five"
    assert str(await ReActAgent(tools=[add], llm=model()).run(say(said))) == "five"


def test_parameters(model):
    options = {"temperature": 0.5, "max_tokens": 20, "additional_kwargs": {"seed": 1, "presence_penalty": 0.1}}
    assert model(**options).chat(HI).message.content == HELLO


def test_too_long(model):
    with pytest.raises(openai.BadRequestError):
        model().complete(TOO_LONG)
