"""Placeholders are told from what looks like one in the request."""

import json

import pytest

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import find_texts
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.placeholders import Placeholders
from presift.orchestrator.prompt.rendered_prompt import read_chat
from presift.orchestrator.prompt.template_messages import template_messages

PRIVATE = "".join(map(chr, range(0xE000, 0xF900)))
ALIKE = "\ue0000000000\ue001"
AS_JSON = [json.dumps(ALIKE), json.dumps(PRIVATE), json.dumps(PRIVATE).upper().replace("\\U", "\\u")]


def template(chat):
    turns = "".join(
        f"<{m['role']}>{m['content']}{json.dumps(m.get('tool_calls', ''), ensure_ascii=False)}"
        for m in template_messages(chat)
    )
    return f"{chat.tools_json}{turns}"


@pytest.mark.parametrize("text", ["", ALIKE, PRIVATE, *AS_JSON])
def test_no_text_of_the_request_is_taken_for_one(text):
    placeholders = Placeholders([text])
    assert placeholders.numbers(text) == set()
    written = f"{text}{placeholders.write(7)}{text}"
    assert placeholders.split(written) == (text, [(7, False, text)])
    assert placeholders.replace(written, lambda number: f"<{number}>") == f"{text}<7>{text}"


@pytest.mark.parametrize("texts", [[], [PRIVATE]])
def test_escapes_of_json_are_read(texts):
    placeholders = Placeholders(texts)
    head, placed = placeholders.split(json.dumps(f"a{placeholders.write(12)}b"))
    assert (head, placed) == ('"a', [(12, True, 'b"')])
    assert placeholders.replace(json.dumps(placeholders.write(1)), lambda _: 'ß"') == '"\\u00df\\""'


def test_a_request_with_all_characters_is_refused():
    with pytest.raises(InvalidRequest, match="all private-use characters"):
        Placeholders([PRIVATE, "".join(map(chr, range(0x100000, 0x10FFFE)))])


@pytest.mark.parametrize("text", [ALIKE, f"\ue000{ALIKE}", PRIVATE, "\\ue0000000001\\ue001", "\ue000", "0000000\ue001"])
@pytest.mark.parametrize("place", ["tool", "call", "name", "text"])
def test_what_looks_like_one_changes_nothing(text, place):
    def say(role, *texts, **given):
        return Message(role, tuple(map(TextPart, texts)), **given)

    def chat(text):
        arguments = {"a": text if place == "call" else "a"}
        call = json.dumps({"name": text if place == "name" else "f", "arguments": arguments})
        tool = json.dumps({"name": "f", "description": text if place == "tool" else "a"}, ensure_ascii=False)
        first = say("user", text if place == "text" else "a", text, "b")
        return Chat(
            (first, say("assistant", "c", tool_calls_json=(call,)), say("tool", "d"), say("user", "e")), (tool,)
        )

    rendered = RenderedChat.of(chat(text), template)
    frame = find_texts(rendered)
    assert frame.rewritten == frame.left_out == read_chat(rendered, None).warnings == ()
    assert [rendered.text[each.range.start : each.range.end] for each in frame.texts][-3:] == ["c", "d", "e"]
