"""OpenAI's own library: chat and legacy completions."""

import base64
import json

import openai
import pytest

from .shared import ADD_TOOL, HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person, say

HI = [{"role": "user", "content": "Hi"}]
ADD = [{"role": "user", "content": "What is 2 + 3?"}]
PERSON_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "strict": True, "schema": Person.model_json_schema()},
}


@pytest.fixture
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def chat(client):
    """options -> an answer to HI."""

    def chat(**options):
        return client.chat.completions.create(**({"model": MODEL, "messages": HI} | options))

    return chat


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_chat(chat):
    answer = chat()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (HELLO, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream(chat):
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == HELLO
    assert chunks[-1].usage.completion_tokens > 0


async def test_asynchronous_stream(base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == HELLO


# --- Structured output


def test_parse_a_model(client):
    answer = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == PERSON


def test_stream_a_model(client):
    with client.chat.completions.stream(model=MODEL, messages=HI, response_format=Person) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == PERSON


def test_json_schema(chat):
    assert Person.model_validate_json(chat(response_format=PERSON_FORMAT).choices[0].message.content) == PERSON


def test_json_object(chat):
    answer = chat(messages=[{"role": "user", "content": say('{"a": 1}')}], response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"a": 1}


# --- Tools


def run_tools(create, messages, adder):
    """The loop that every agent runs. Returns the last message."""
    messages = list(messages)
    for _ in range(4):
        choice = create(messages).choices[0]
        messages.append(choice.message)
        if choice.finish_reason != "tool_calls":
            return choice.message
        for call in choice.message.tool_calls:
            result = adder.add(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    raise AssertionError("the loop did not end")


def test_tool_loop(chat):
    adder = Adder()
    answer = run_tools(lambda messages: chat(messages=messages, tools=[ADD_TOOL]), ADD, adder)
    assert (answer.content, adder.calls) == (SUM_ANSWER, [(2, 3)])


def test_tool_loop_streamed(client):
    adder = Adder()

    def create(messages):
        with client.chat.completions.stream(model=MODEL, messages=messages, tools=[STRICT_TOOL]) as stream:
            return stream.get_final_completion()

    answer = run_tools(create, ADD, adder)
    assert (answer.content, adder.calls) == (SUM_ANSWER, [(2, 3)])


STRICT_TOOL = {"type": "function", "function": ADD_TOOL["function"] | {"strict": True}}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_forced_call(chat, choice):
    message = chat(messages=ADD, tools=[ADD_TOOL], tool_choice=choice).choices[0].message
    assert [(each.function.name, json.loads(each.function.arguments)) for each in message.tool_calls] == [
        ("add", {"a": 2, "b": 3})
    ]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_forced_call_streamed(chat, choice):
    deltas = [
        call
        for chunk in chat(messages=ADD, tools=[ADD_TOOL], tool_choice=choice, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert (deltas[0].function.name, deltas[0].index) == ("add", 0)
    assert deltas[0].id
    assert json.loads("".join(each.function.arguments or "" for each in deltas)) == {"a": 2, "b": 3}


def test_no_call_where_tools_are_not_to_be_used(chat):
    message = chat(messages=[{"role": "user", "content": say("none")}], tools=[ADD_TOOL], tool_choice="none")
    assert (message.choices[0].message.content, message.choices[0].message.tool_calls) == ("none", None)


def test_two_calls_in_one_answer(chat):
    call = '<tool_call>\n{"name": "add", "arguments": {"a": %d, "b": 3}}\n</tool_call>'
    said = say(f"{call % 1}\n{call % 2}")
    for stream in (False, True):
        answer = chat(messages=[{"role": "user", "content": said}], tools=[ADD_TOOL], stream=stream)
        calls = calls_of(answer) if stream else [each.function for each in answer.choices[0].message.tool_calls]
        assert [json.loads(each.arguments)["a"] for each in calls] == [1, 2], stream


def calls_of(stream):
    calls = []
    for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.index == len(calls):
                calls.append(delta.function)
            else:
                calls[delta.index].arguments += delta.function.arguments
    return calls


def test_parallel_calls_switched_off(chat):
    answer = chat(messages=ADD, tools=[ADD_TOOL], parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1


# --- Shape


def test_several_choices(chat):
    assert [each.message.content for each in chat(n=2).choices] == [HELLO, HELLO]
    indices = {chunk.choices[0].index for chunk in chat(n=2, stream=True)}
    assert indices == {0, 1}


def test_log_probabilities(chat):
    content = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(each.token for each in content) == HELLO
    assert [len(each.top_logprobs) for each in content] == [2] * len(content)


def test_log_probabilities_streamed(chat):
    chunks = chat(logprobs=True, top_logprobs=2, stream=True)
    held = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert "".join(each.token for logprobs in held for each in logprobs.content) == HELLO


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_p": 0.9, "seed": 1, "max_tokens": 20},
        {"presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"logit_bias": {"5": 1}},
        {"max_completion_tokens": 20, "user": "u", "store": False, "metadata": {"a": "b"}},
        {"stop": ["zzz"], "n": 1},
        {"response_format": {"type": "text"}, "tool_choice": "none", "parallel_tool_calls": True, "tools": [ADD_TOOL]},
        {"extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0, "ignore_eos": False}},
        {"extra_body": {"chat_template_kwargs": {}, "separate_reasoning": True, "skip_special_tokens": True}},
    ],
    ids="-".join,
)
def test_parameters(chat, options):
    assert chat(**options).choices[0].message.content == HELLO


def test_a_name_and_a_developer(chat):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "name": "ada", "content": "Hi"}]
    assert chat(messages=messages).choices[0].message.content == HELLO


def test_reasoning_is_separate(chat):
    message = chat(messages=[{"role": "user", "content": "THINK"}]).choices[0].message
    assert (message.content.strip(), message.reasoning_content.strip()) == (HELLO, "It is simple.")


# --- Legacy completions


def test_completion(client):
    answer = client.completions.create(model=MODEL, prompt="Hi")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (HELLO, "stop")


def test_completions_of_several_prompts(client):
    prompts = [say("one"), say("two")]
    answer = client.completions.create(model=MODEL, prompt=prompts, n=2)
    assert [(each.index, each.text) for each in answer.choices] == [(0, "one"), (1, "one"), (2, "two"), (3, "two")]
    stream = client.completions.create(model=MODEL, prompt=prompts, stream=True)
    texts = {0: "", 1: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "one", 1: "two"}


def test_completion_of_token_ids(client):
    assert client.completions.create(model=MODEL, prompt=[[5, 6], [7, 8]]).choices[1].text == HELLO


def test_completion_with_log_probabilities(client):
    logprobs = client.completions.create(model=MODEL, prompt="Hi", logprobs=2).choices[0].logprobs
    assert "".join(logprobs.tokens) == HELLO
    assert {len(each) for each in logprobs.top_logprobs} == {2}


def test_echo(client):
    answer = client.completions.create(model=MODEL, prompt="Hi", echo=True, max_tokens=1, logprobs=1)
    assert answer.choices[0].text.startswith("Hi")
    assert answer.choices[0].logprobs.token_logprobs[0] is None


# --- The rest


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_too_long(chat):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(messages=[{"role": "user", "content": TOO_LONG}])
    assert refused.value.code == "context_length_exceeded"
    # LiteLLM reads the one in the message; LangChain, with openai 3, the other.
    assert "maximum context length" in refused.value.message
    assert "prompt is too long" in refused.value.message


def test_unknown_model(chat):
    with pytest.raises(openai.NotFoundError):
        chat(model="other")


def test_out_of_range(chat):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(temperature=3)
    assert refused.value.param == "temperature"


def test_pictures_are_refused_by_name(chat):
    picture = base64.b64encode(b"x").decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        chat(messages=[{"role": "user", "content": [part]}])


def test_embeddings_are_refused_by_name(client):
    with pytest.raises(openai.APIStatusError, match="embeddings"):
        client.embeddings.create(model=MODEL, input="Hi")


@pytest.mark.parametrize("path", ["", "/", "/v1/", "//v1"])
def test_base_urls(server, path):
    with openai.OpenAI(base_url=f"{server}{path}", api_key="none", max_retries=0) as client:
        assert client.chat.completions.create(model=MODEL, messages=HI).choices[0].message.content == HELLO


def test_request_ids(client):
    headers = {"x-request-id": "mine"}
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=HI, extra_headers=headers)
    assert answer.request_id == "mine"
