"""Bodies of other APIs as bodies of a chat: what becomes of messages, and what the caller's names for them are."""

import pytest

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.messages.conversion import chat_from_messages
from presift.orchestrator.api.http.messages.schema import MessagesBody
from presift.orchestrator.api.http.responses.conversion import chat_from_responses
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.schema import validate
from presift.orchestrator.api.http.unsupported import check_neutral


def from_responses(**given):
    body = validate(ResponsesBody, {"model": "m", **given})
    return chat_from_responses(body, given, {})


def from_messages(**given):
    given = {"model": "m", "max_tokens": 5, **given}
    return chat_from_messages(validate(MessagesBody, given), given, {}, frozenset())


def texts(translated):
    """(role, text, other keys) of each message."""
    return [
        (
            each["role"],
            "".join(part["text"] for part in each["content"] or ()),
            sorted(each.keys() - {"role", "content", "protected"}),
        )
        for each in translated.given["messages"]
    ]


def item(kind, **values):
    return {"type": kind, **values}


def test_the_items_of_one_turn_become_one_message():
    think = item("reasoning", content=[{"type": "reasoning_text", "text": "hm"}], summary=[])
    say = {"role": "assistant", "content": [{"type": "output_text", "text": "Well."}]}
    calls = [item("function_call", call_id=name, name="f", arguments="{}") for name in "ab"]
    results = [item("function_call_output", call_id=name, output="1") for name in "ab"]
    chat = from_responses(input=[{"role": "user", "content": "q"}, think, say, *calls, *results, think])
    assert texts(chat) == [
        ("user", "q", []),
        ("assistant", "Well.", ["reasoning_content", "tool_calls"]),
        ("tool", "1", ["tool_call_id"]),
        ("tool", "1", ["tool_call_id"]),
        ("assistant", "", ["reasoning_content"]),
    ]
    assert [call["id"] for call in chat.given["messages"][1]["tool_calls"]] == ["a", "b"]


def test_two_messages_of_an_assistant_stay_two():
    chat = from_responses(input=[{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert [text for _, text, _ in texts(chat)] == ["a", "b"]


def test_errors_name_the_callers_item():
    chat = from_responses(
        instructions="i",
        input=[{"role": "user", "content": "q"}, item("function_call", call_id="1", name="f", arguments="")],
    )
    names = chat.names
    assert names.parameter("messages[0].content") == "instructions.content"
    assert names.parameter("messages[1].content[0].text") == "input[0].content[0].text"
    assert names.parameter("messages[2].tool_calls") == "input[1].tool_calls"
    assert names.parameter("prompt.chat.messages.parts") == "input.content"
    assert names.parameter("sampling.max_new_tokens") == "max_output_tokens"
    assert names.parameter("tools[3].function.name") == "tools[3].name"
    assert names.parameter("response_format.json_schema.schema") == "text.format.schema"
    assert names.parameter("route") == "presift.route" and names.parameter("temperature") == "temperature"


def test_a_users_blocks_keep_their_order():
    result = {"type": "tool_result", "tool_use_id": "1", "content": "r"}
    blocks = [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
        result,
        result,
        {"type": "text", "text": "c"},
    ]
    chat = from_messages(system="s", messages=[{"role": "user", "content": blocks}])
    assert texts(chat) == [
        ("system", "s", []),
        ("user", "ab", []),
        ("tool", "r", ["tool_call_id"]),
        ("tool", "r", ["tool_call_id"]),
        ("user", "c", []),
    ]
    assert chat.names.parameter("messages[3].content") == "messages[0].content[3].content"
    assert chat.names.parameter("messages[4].content[0]") == "messages[0].content[0]"


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ({"message": 0}, [{"message": 1}, {"message": 2}]),
        ({"message": 0, "part": 0}, [{"message": 1, "part": 0}]),
        ({"message": 0, "part": 1}, [{"message": 2, "part": 0}]),
        ({"message": -1}, [{"message": 3}]),
    ],
)
def test_references_are_to_the_callers_messages(reference, found):
    result = {"type": "tool_result", "tool_use_id": "1", "content": "r"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, result]}, {"role": "user", "content": "b"}]
    chat = from_messages(system="s", messages=messages, presift={"documents": [reference]})
    assert chat.given["presift"]["documents"] == found


def test_a_reference_to_a_result_of_several_texts_is_to_all_of_them():
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": each} for each in "ab"]}
    chat = from_messages(
        messages=[{"role": "user", "content": [result]}], presift={"protected": [{"message": 0, "part": 0}]}
    )
    assert chat.given["presift"]["protected"] == [{"message": 0, "part": 0}, {"message": 0, "part": 1}]


def test_references_to_a_message_that_has_become_many_do_not_multiply():
    """A body of 100 KiB took a gigabyte."""
    results = [{"type": "tool_result", "tool_use_id": "1"}] * 1_000
    chat = from_messages(
        messages=[{"role": "user", "content": results}], presift={"protected": [{"message": 0}, {"message": -1}] * 50}
    )
    assert chat.given["presift"]["protected"] == [{"message": at} for at in range(1_000)]


@pytest.mark.parametrize(
    "reference", [{"message": 2}, {"message": -3}, {"message": 0, "part": 7}, {"message": 0, "part": [0]}]
)
def test_a_reference_to_nothing_is_refused(reference):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InvalidRequest, match=r"presift\.protected\[0\]"):
        from_messages(messages=messages, presift={"protected": [reference]})


@pytest.mark.parametrize(
    ("messages", "continues"),
    [
        ([{"role": "user", "content": "a"}], None),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}], True),
        ([{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}], None),
    ],
)
def test_an_assistants_message_at_the_end_is_continued(messages, continues):
    assert from_messages(messages=messages).given.get("continue_final_message") is continues


def test_the_default_effort_asks_for_nothing_where_the_template_has_no_reasoning():
    given = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
    for effort, template, expected, named in [
        ("high", frozenset(), None, ["output_config.effort"]),
        ("high", frozenset({"enable_thinking"}), "high", []),
        ("low", frozenset(), "low", []),  # refused later, because it asks for something
        (None, frozenset(), None, []),
    ]:
        body, ignored = given | {"output_config": {"effort": effort}}, {}
        chat = chat_from_messages(validate(MessagesBody, body), body, ignored, template)
        assert (chat.given.get("reasoning_effort"), list(ignored)) == (expected, named)


def test_neutral_values_are_of_their_type():
    check_neutral({"n": 1, "flag": None}, {"n": (1,), "flag": ()}, {})
    for value in (True, 2, "1"):
        with pytest.raises(InvalidRequest, match="n is"):
            check_neutral({"n": value}, {"n": (1,)}, {})
