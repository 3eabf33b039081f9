"""Which characters of a rendered chat are droppable: only unprotected text of the caller."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.chat_frame import Range, find_texts
from presift.orchestrator.prompt.chat_renderer import RenderedChat
from presift.orchestrator.prompt.chat_texts import strings, with_placeholders
from presift.orchestrator.prompt.placeholders import Placeholders
from presift.orchestrator.prompt.protection import QUESTION_CHARACTERS, droppable_ranges
from presift.orchestrator.prompt.template_messages import template_messages

LONG = "long text. " * 200  # longer than a question
assert len(LONG) > QUESTION_CHARACTERS


def plain(chat):
    turns = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in template_messages(chat))
    return f"{turns}<|assistant|>\n"


def default_system(chat):
    head = "" if chat.messages[0].role == "system" else "<|system|>\nYou are helpful.<|end|>\n"
    return head + plain(chat)


def trimming(chat):
    return "".join(f"[{m['role']}] {m['content'].strip()}\n" for m in template_messages(chat))


def shouting(chat):
    return plain(chat).upper()


def repeating(chat):
    return plain(chat) + "reminder: " + template_messages(chat)[0]["content"]


def dropping(chat):
    """Keeps only the last message, like templates that drop reasoning."""
    return f"<{template_messages(chat)[-1]['content']}>"


TEMPLATES = [plain, default_system, trimming, shouting, repeating, dropping]


def say(role, *parts, protected=False):
    made = tuple(part if isinstance(part, TextPart) else TextPart(part) for part in parts)
    return Message(role, made, protected)


def droppable(template, *messages):
    """The texts that may be dropped."""
    chat = Chat(messages)
    rendered = template(chat)
    return [rendered[each.start : each.end] for each in ranges_of(template, chat)]


def ranges_of(template, chat):
    return droppable_ranges(chat, find_texts(RenderedChat.of(chat, template)))


def test_history_may_be_dropped_system_and_question_may_not():
    texts = droppable(
        plain, say("system", "be brief"), say("user", "first"), say("assistant", "answer"), say("user", "why?")
    )
    assert texts == ["first", "answer"]


def test_tool_results_may_be_dropped():
    assert droppable(plain, say("user", "a"), say("tool", "result"), say("user", "b")) == ["a", "result"]


def test_last_user_turn_counts_even_if_others_follow():
    assert droppable(plain, say("user", "why?"), say("assistant", "because")) == ["because"]


def test_long_last_user_turn_may_be_dropped():
    assert droppable(plain, say("system", "s"), say("user", LONG)) == [LONG]


@pytest.mark.parametrize(("length", "kept"), [(QUESTION_CHARACTERS, True), (QUESTION_CHARACTERS + 1, False)])
def test_where_a_question_ends(length, kept):
    assert droppable(plain, say("user", "x" * length)) == ([] if kept else ["x" * length])


def test_closing_part_of_a_long_turn_is_the_question():
    assert droppable(plain, say("user", LONG, "document two ", "So?")) == [LONG, "document two "]


def test_long_closing_part_is_a_document():
    assert droppable(plain, say("user", "So?", LONG)) == ["So?", LONG]


def test_marked_parts_and_messages_are_kept():
    texts = droppable(
        plain,
        say("user", "a", TextPart("b", protected=True), "c"),
        say("assistant", "d", protected=True),
        say("user", TextPart(LONG, protected=True), LONG),
    )
    assert texts == ["a", "c", LONG]


def test_an_unmarked_system_message_is_kept_wherever_it_stands():
    assert droppable(plain, say("user", "a"), say("system", "later rule"), say("user", "b")) == ["a"]


def test_empty_parts_have_no_range():
    assert droppable(plain, say("user", "", "a", ""), say("user", "b")) == ["a"]


def test_trimming_template():
    assert droppable(trimming, say("user", "  a b \n"), say("assistant", "\tc", "d "), say("user", "e")) == [
        "a b",
        "c",
        "d",
    ]


@pytest.mark.parametrize("template", [shouting, dropping])
def test_template_that_changes_texts_protects_everything(template):
    assert droppable(template, say("user", "abc"), say("assistant", "def"), say("user", "why?")) == []


def test_template_that_repeats_a_text():
    assert droppable(repeating, say("user", "first"), say("user", "b")) == ["first", "first"]


@pytest.mark.parametrize("text", ["You", "helpful", "You are helpful.", "<|end|>", "<|assistant|>\n", "\ue0000\ue001"])
def test_a_text_that_the_template_contains_too_unprotects_nothing_else(text):
    chat = Chat((say("user", text), say("assistant", text), say("user", "why?")))
    rendered = default_system(chat)
    ranges = ranges_of(default_system, chat)
    own = [rendered.index("<|user|>\n") + 9, rendered.index(f"<|assistant|>\n{text}") + 14]
    assert list(ranges) == [Range(start, start + len(text)) for start in own]


def test_a_template_may_write_what_looks_like_a_placeholder():
    def odd(chat):
        return "\ue0000000000\ue001" + plain(chat)

    assert droppable(odd, say("user", "a"), say("user", "b")) == ["a"]


def document(text, **marks):
    return TextPart(text, document=True, **marks)


def test_with_marked_documents_nothing_else_may_be_dropped():
    texts = droppable(
        plain,
        say("user", "history"),
        say("assistant", LONG),
        say("tool", "result"),
        say("user", "Read. ", document("short"), LONG, document(LONG), "So?"),
    )
    assert texts == ["short", LONG]


def test_documents_anywhere_in_a_conversation():
    """In the system prompt and in earlier messages too: the mark decides."""
    texts = droppable(
        plain, say("system", "be brief", document("context")), say("user", document("old")), say("user", "why?")
    )
    assert texts == ["context", "old"]


def test_protected_wins_over_document():
    texts = droppable(
        plain,
        say("user", document("a", protected=True), document("b")),
        say("tool", document("c"), protected=True),
        say("user", "why?"),
    )
    assert texts == ["b"]


def test_a_protected_document_alone_protects_everything():
    assert droppable(plain, say("user", LONG), say("user", document("a", protected=True), LONG)) == []


TEXT = st.text(st.sampled_from(" \n\tab<|>You\ue000\ue0010é😀"), max_size=12)
PART = st.builds(TextPart, TEXT | st.just(LONG), st.booleans(), st.just(False) | st.booleans())
MESSAGE = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(PART, max_size=3).map(tuple),
    st.booleans(),
)


@given(messages=st.lists(MESSAGE, min_size=1, max_size=4), template=st.sampled_from(TEMPLATES))
def test_only_unprotected_text_of_the_caller_is_droppable(messages, template):
    chat = Chat(tuple(messages))
    rendered = template(chat)
    ranges = ranges_of(template, chat)
    assert list(ranges) == sorted(ranges)
    assert all(one.end <= other.start for one, other in itertools.pairwise(ranges))
    free = [
        part.text.strip()
        for message in messages
        if not message.protected
        for part in message.parts
        if not part.protected and (part.document if chat.has_documents else message.role != "system")
    ]
    for each in ranges:
        assert 0 <= each.start < each.end <= len(rendered)
        assert rendered[each.start : each.end].strip() in free


def test_frame_keeps_shape_and_marks():
    chat = Chat((say("system", "s"), say("user", "a", TextPart("b", protected=True), protected=True)), ("{}",))
    frame = with_placeholders(chat, frozenset({0, 1}), Placeholders(strings(chat)))
    assert [len(message.parts) for message in frame.messages] == [1, 2]
    assert frame.messages[1].protected and frame.messages[1].parts[1].protected and frame.tools_json == ("{}",)
    texts = [part.text for message in frame.messages for part in message.parts]
    assert len(set(texts)) == 3 and not set(texts) & {"s", "a", "b"}


# -- reasoning in the history --


def thinking(chat):
    """As templates of reasoning models: earlier answers lose their reasoning, the last one has it at the front."""
    turns, last = [], len(chat.messages) - 1
    for at, message in enumerate(template_messages(chat)):
        content, reasoning = message["content"], message.get("reasoning_content", "")
        if message["role"] == "assistant" and "</think>" in content:
            reasoning = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
            content = content.split("</think>")[-1].lstrip("\n")
        if message["role"] == "assistant" and at == last and reasoning:
            content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
        turns.append(f"<|{message['role']}|>{content}<|end|>")
    return "".join(turns)


THOUGHTS = [
    "<think>\nhm\n</think>\n\n",
    "<think></think>",
    "hm</think>\n",
    "<think>\n\n</think>\n\n",
    "\n<think>\nhm </think>  ",
]


@pytest.mark.parametrize("template", [thinking, plain])
@pytest.mark.parametrize("thought", THOUGHTS)
def test_reasoning_of_earlier_answers_changes_nothing_else(template, thought):
    before, after = (say("user", "first"), say("user", "why?"))
    texts = droppable(template, before, say("assistant", f"{thought}answer"), after)
    assert [text for text in texts if text != "hm"] == ["first", "answer"]
    assert droppable(template, before, say("assistant", "answer"), after) == ["first", "answer"]


def stripping_answers(chat):
    """As templates that strip answers, with or without reasoning, and leave questions as they are."""
    turns = []
    for message in template_messages(chat):
        is_answer = message["role"] == "assistant"
        text = message["content"].split("</think>")[-1].strip() if is_answer else message["content"]
        turns.append(f"<|{message['role']}|>{text}")
    return "".join(turns)


@pytest.mark.parametrize("thought", ["", *THOUGHTS])
def test_a_template_that_strips_answers_alone(thought):
    texts = droppable(
        stripping_answers, say("user", " first\n"), say("assistant", f"{thought}answer \n"), say("user", "b")
    )
    assert texts == [" first\n", "answer"]


@pytest.mark.parametrize("reasoning", ["hm", "\n hm\n", "hm </think> hm"])
def test_reasoning_given_apart(reasoning):
    answer = Message("assistant", (TextPart("answer"),), reasoning=reasoning)
    assert droppable(thinking, say("user", "first"), answer, say("user", "why?")) == ["first", "answer"]
    texts = droppable(thinking, say("user", "first"), say("user", "why?"), answer)
    assert texts == ["first", reasoning.strip(), "answer"]


def test_reasoning_is_kept_with_its_message():
    answer = Message("assistant", (TextPart("answer"),), protected=True, reasoning="hm")
    assert droppable(thinking, say("user", "first"), say("user", "why?"), answer) == ["first"]


def test_tags_in_a_users_text_are_text():
    assert droppable(plain, say("user", "a <think> b"), say("user", "why?")) == ["a <think> b"]


# -- an answer to continue --


@pytest.mark.parametrize("documents", [False, True])
def test_an_answer_to_continue_is_kept(documents):
    first = TextPart("first", document=documents)
    chat = Chat((say("user", first), say("user", "why?"), say("assistant", "Because")), continue_final_message=True)
    rendered = plain(chat)
    assert [rendered[each.start : each.end] for each in ranges_of(plain, chat)] == ["first"]
