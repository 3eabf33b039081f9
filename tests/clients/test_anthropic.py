"""Anthropic's own library, which coding agents use."""

import anthropic
import pytest

from .shared import ADD_TOOL, HELLO, MODEL, PERSON, SUM_ANSWER, TOO_LONG, Adder, Person

HI = [{"role": "user", "content": "Hi"}]
ADD = [{"role": "user", "content": "What is 2 + 3?"}]
# The newest models of Anthropic take none of them; the library has left them out.
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
TOOL = {"name": "add", "description": "Add two integers.", "input_schema": ADD_TOOL["function"]["parameters"]}


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=server, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def create(client):
    def create(messages=HI, **options):
        return client.messages.create(**({"model": MODEL, "max_tokens": 200, "messages": messages} | options))

    return create


def test_message(create):
    answer = create(system="Be brief.", metadata={"user_id": "u"}, stop_sequences=["zzz"], extra_body=SAMPLING)
    assert ([block.text for block in answer.content], answer.stop_reason) == ([HELLO], "end_turn")
    assert answer.usage.output_tokens > 0


def test_stream(client):
    with client.messages.stream(model=MODEL, max_tokens=200, messages=HI) as stream:
        assert "".join(stream.text_stream) == HELLO
        answer = stream.get_final_message()
    assert (answer.content[0].text, answer.stop_reason) == (HELLO, "end_turn")
    assert answer.usage.output_tokens > 0


@pytest.mark.parametrize("streams", [False, True])
def test_tool_loop(client, create, streams):
    adder, messages = Adder(), list(ADD)
    for _ in range(3):
        if streams:
            with client.messages.stream(model=MODEL, max_tokens=200, messages=messages, tools=[TOOL]) as stream:
                answer = stream.get_final_message()
        else:
            answer = create(messages, tools=[TOOL])
        messages.append({"role": "assistant", "content": answer.content})
        if answer.stop_reason != "tool_use":
            break
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": str(adder.add(**block.input))}
            for block in answer.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})
    assert (answer.content[0].text, adder.calls) == (SUM_ANSWER, [(2, 3)])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}], ids=["any", "tool"])
def test_forced_call(create, choice):
    answer = create(ADD, tools=[TOOL], tool_choice=choice | {"disable_parallel_tool_use": True})
    assert [(block.name, block.input) for block in answer.content] == [("add", {"a": 2, "b": 3})]


def test_structured_output(client):
    answer = client.messages.parse(model=MODEL, max_tokens=200, messages=HI, output_format=Person)
    assert answer.parsed_output == PERSON


def test_tool_runner(client):
    adder = Adder()

    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Add two integers."""
        return str(adder.add(a, b))

    runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=200, messages=ADD, tools=[add])
    assert (runner.until_done().content[0].text, adder.calls) == (SUM_ANSWER, [(2, 3)])


def test_several_blocks_and_cache_control(create):
    text = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    assert create([{"role": "user", "content": [text, text]}], system=[text]).content[0].text == HELLO


def test_count_tokens(client):
    assert client.messages.count_tokens(model=MODEL, messages=HI).input_tokens > 0


def test_too_long(create):
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        create([{"role": "user", "content": TOO_LONG}])


def test_stored_threads_are_refused_as_newer_libraries_expect(create):
    """Their tool runner then sends the whole conversation. Ignored, all but the last message would be lost."""
    with pytest.raises(anthropic.BadRequestError) as refused:
        create(extra_body={"thread": {"type": "create"}})
    assert refused.value.body["error"]["details"]["error_code"] == "thread_unsupported_request"


def test_models(client):
    models = list(client.models.list(limit=1))
    assert [model.type for model in models] == ["model"]
    found = client.models.retrieve(models[0].id)
    assert found == models[0] and found.display_name == found.id and found.created_at.year > 2000
