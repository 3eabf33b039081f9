"""Where the texts of a chat stand in its rendering, for templates that change, leave out or refuse messages."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import MAX_RENDERED_CHARACTERS, MAX_RENDERINGS, find_texts
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.protection import droppable_ranges
from presift.orchestrator.prompt.template_messages import template_messages

MARK = "<hidden>"


def say(role, *texts, **given):
    return Message(role, tuple(map(TextPart, texts)), **given)


def turns(chat, write):
    return "".join(f"<|{each['role']}|>{write(each)}<|end|>" for each in template_messages(chat))


def plain(chat):
    return turns(chat, lambda message: message["content"])


def cutting(chat):
    """Cuts every text at a mark that it alone knows."""
    return turns(chat, lambda message: message["content"].split(MARK)[-1])


def as_json(chat):
    """Writes the results of tools as JSON strings, as Llama 3 does."""
    return turns(
        chat,
        lambda each: json.dumps(each["content"], ensure_ascii=False) if each["role"] == "tool" else each["content"],
    )


def without_newlines(chat):
    return turns(chat, lambda message: message["content"].strip("\n"))


def only_first_system(chat):
    kept = [each for at, each in enumerate(chat.messages) if at == 0 or each.role != "system"]
    return plain(Chat(tuple(kept)))


def droppable(template, chat):
    rendered = template(chat)
    return [
        rendered[each.start : each.end] for each in droppable_ranges(chat, find_texts(RenderedChat.of(chat, template)))
    ]


def test_a_message_that_the_template_rewrites_is_kept_and_no_other():
    chat = Chat((say("user", "first"), say("assistant", f"a {MARK} b"), say("user", "second"), say("user", "why?")))
    assert droppable(cutting, chat) == ["first", "second"]
    assert find_texts(RenderedChat.of(chat, cutting)).rewritten == (1,)


@pytest.mark.parametrize("rewritten", [{0}, {5, 6}, {0, 99}, {3, 40, 77}])
def test_messages_that_are_rewritten_are_found_among_many(rewritten):
    texts = [f"{at} {MARK} rest" if at in rewritten else f"text {at}" for at in range(100)]
    chat = Chat((*(say("user", text) for text in texts), say("user", "why?")))
    calls = []
    found = find_texts(RenderedChat.of(chat, lambda each: calls.append(each) or cutting(each)))
    assert rewritten <= set(found.rewritten)
    assert len(calls) <= MAX_RENDERINGS + 2
    if len(rewritten) == 1:
        assert set(found.rewritten) == rewritten


def test_renderings_are_bounded_if_every_message_is_rewritten():
    chat = Chat(tuple(say("user", f"{at} {MARK} rest") for at in range(500)))
    calls = []
    found = find_texts(RenderedChat.of(chat, lambda each: calls.append(each) or cutting(each)))
    assert len(calls) == MAX_RENDERINGS + 2 and droppable_ranges(chat, found) == ()


RESULT = 'He said "no"\n\tC:\\temp é😀'


def test_results_of_tools_as_json_strings():
    chat = Chat((say("user", "first"), say("tool", RESULT), say("user", "why?")))
    assert droppable(as_json, chat) == ["first", json.dumps(RESULT, ensure_ascii=False)[1:-1]]


def test_newlines_alone_are_stripped():
    chat = Chat((say("user", "\n\n  a \n", "b\t\n"), say("user", "why?")))
    assert droppable(without_newlines, chat) == ["  a \n", "b\t"]


@pytest.mark.parametrize("tags", [("◁think▷", "◁/think▷"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")])
def test_other_marks_of_reasoning(tags):
    first, last = tags
    chat = Chat((say("user", "first"), say("assistant", f"{first}hm{last}\nanswer"), say("user", "why?")))

    def template(chat):
        return turns(chat, lambda message: message["content"].split(last)[-1].strip())

    assert droppable(template, chat) == ["first", "answer"]
    assert find_texts(RenderedChat.of(chat, template)).left_out == ()


def test_long_white_space_takes_no_quadratic_time():
    text = f"a{' ' * 50_000}b"
    chat = Chat((say("user", "first"), say("assistant", text, reasoning=text), say("user", "why?")))
    began_s = time.process_time()
    assert droppable(plain, chat) == ["first", text]
    assert time.process_time() - began_s < 1.0


def test_a_mark_of_reasoning_that_is_unknown_keeps_its_own_answer_alone():
    chat = Chat((say("user", "first"), say("assistant", f"hm{MARK}answer"), say("user", "why?")))
    assert droppable(cutting, chat) == ["first"]


def test_a_message_that_is_left_out():
    chat = Chat((say("system", "a"), say("user", "b"), say("system", "c"), say("user", "d")))
    assert find_texts(RenderedChat.of(chat, only_first_system)).left_out == (2,)


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_blank_message_is_not_missed(text):
    chat = Chat((say("system", "a"), say("system", text), say("user", "d")))
    assert find_texts(RenderedChat.of(chat, only_first_system)).left_out == ()


def test_a_template_that_looks_at_the_texts():
    """It refuses placeholders: the message that it looks at is kept."""

    def picky(chat):
        if not template_messages(chat)[0]["content"].startswith("Rule"):
            raise InvalidRequest("prompt.chat", "refused", "a rule first")
        return plain(chat)

    chat = Chat((say("user", "Rule one"), say("assistant", "answer"), say("user", "why?")))
    assert droppable(picky, chat) == ["answer"]
    assert find_texts(RenderedChat.of(chat, picky)).left_out == ()


def without_blanks(chat):
    """Leaves out a message that is blank."""
    return plain(replace(chat, messages=tuple(each for each in chat.messages if each.text.strip())))


def test_blank_messages_that_are_left_out_change_nothing_else():
    turns = [say("user", f"text {at}") for at in range(200)]
    chat = Chat((*turns[:100], say("assistant", " \n"), *turns[100:], say("tool", "\n"), say("user", "why?")))
    found = find_texts(RenderedChat.of(chat, without_blanks))
    assert found.rewritten == found.left_out == ()
    assert len(droppable_ranges(chat, found)) == 200


def test_renderings_of_long_chats_are_fewer():
    chat = Chat(tuple(say("user", f"{at} {MARK} {'rest ' * 10_000}") for at in range(100)))
    calls = []
    find_texts(RenderedChat.of(chat, lambda each: calls.append(each) or cutting(each)))
    assert len(calls) == MAX_RENDERED_CHARACTERS // len(cutting(chat)) + 2 < MAX_RENDERINGS


WORDS = st.text(st.sampled_from(' \n"\\a' + "é"), max_size=6)
SOME = st.lists(
    st.builds(
        lambda role, texts, marked: say(role, *texts, *([MARK, "z"] if marked else [])),
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.lists(WORDS, min_size=1, max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(SOME, st.sampled_from([plain, cutting, as_json, without_newlines]))
def test_every_text_found_is_that_text(messages, template):
    chat = Chat(tuple(messages))
    rendered = template(chat)
    found = find_texts(RenderedChat.of(chat, template))
    assert found.left_out == ()
    for each in found.texts:
        shown, part = rendered[each.range.start : each.range.end], chat.messages[each.message].parts[each.part].text
        assert (
            shown.strip() in (part.strip(), json.dumps(part, ensure_ascii=False)[1:-1].strip())
            or json.loads(f'"{shown}"').strip() == part.strip()
        )
    # Only messages that have the mark are rewritten.
    if template is not cutting:
        assert found.rewritten == ()
    assert all(MARK in chat.messages[at].text for at in found.rewritten)
