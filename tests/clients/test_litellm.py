"""LiteLLM, with its OpenAI, text-completion, vLLM and Anthropic routes."""

import json

import litellm
import pytest

from .shared import ADD_TOOL, HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person, say

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(params=["openai", "hosted_vllm"])
def complete(request, base_url):
    def complete(**options):
        values = {"model": f"{request.param}/{MODEL}", "messages": HI, "api_base": base_url, "api_key": "none"}
        return litellm.completion(**(values | options), num_retries=0)

    return complete


def test_chat(complete):
    answer = complete()
    assert answer.choices[0].message.content == HELLO
    assert answer.usage.completion_tokens > 0


def test_stream(complete):
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == HELLO
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0


async def test_asynchronous(base_url):
    answer = await litellm.acompletion(model=f"openai/{MODEL}", messages=HI, api_base=base_url, api_key="none")
    assert answer.choices[0].message.content == HELLO


def test_structured_output(complete):
    answer = complete(response_format=Person).choices[0].message.content
    assert Person.model_validate_json(answer) == PERSON


def test_json_object(complete):
    messages = [{"role": "user", "content": say('{"a": 1}')}]
    answer = complete(messages=messages, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"a": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_tool_loop(complete, stream):
    adder, messages = Adder(), [{"role": "user", "content": "What is 2 + 3?"}]

    def ask():
        answer = complete(messages=messages, tools=[ADD_TOOL], tool_choice="auto", stream=stream)
        return litellm.stream_chunk_builder(list(answer)) if stream else answer

    answer = ask()
    assert answer.choices[0].finish_reason == "tool_calls"
    messages.append(answer.choices[0].message.model_dump())
    for call in answer.choices[0].message.tool_calls:
        result = adder.add(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "name": "add", "content": str(result)})
    assert ask().choices[0].message.content == SUM_ANSWER
    assert adder.calls == [(2, 3)]


def test_parameters_with_drop_params(complete):
    answer = complete(drop_params=True, temperature=0.5, n=1, presence_penalty=0.1, seed=1, top_k=3, user="u")
    assert answer.choices[0].message.content == HELLO


def test_text_completion(base_url):
    model = f"text-completion-openai/{MODEL}"
    answer = litellm.text_completion(model=model, prompt="Hi", api_base=base_url, api_key="none")
    assert answer.choices[0].text == HELLO


def test_responses(base_url):
    answer = litellm.responses(model=f"openai/{MODEL}", input="Hi", api_base=base_url, api_key="none")
    assert answer.output[0].content[0].text == HELLO


def test_anthropic_messages(server):
    model = f"anthropic/{MODEL}"
    answer = litellm.completion(model=model, messages=HI, api_base=server, api_key="none", max_tokens=200)
    assert answer.choices[0].message.content == HELLO


def test_too_long(complete):
    with pytest.raises(litellm.ContextWindowExceededError):
        complete(messages=[{"role": "user", "content": TOO_LONG}])


def test_out_of_range(complete):
    with pytest.raises(litellm.BadRequestError):
        complete(temperature=3)
