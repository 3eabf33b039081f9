"""From prompts to token ids with protected spans, over a real byte-level BPE."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from presift.core.errors import InvalidRequest
from presift.core.spans import Span, covered
from presift.orchestrator.domain.request import Chat, Message, Text, TextPart, TokenIds
from presift.orchestrator.prompt import protected_tokens
from presift.orchestrator.prompt.chat_frame import Range
from presift.orchestrator.prompt.chat_renderer import ChatRenderer
from presift.orchestrator.prompt.protected_tokens import protected_spans
from presift.orchestrator.prompt.raw_tokens import encode
from presift.orchestrator.prompt.tokenizer import INLINE_CHARACTERS, PromptTokenizer

from ....held_bytes import held_bytes

# Fewer in `make test-fast`.
EXAMPLES = settings().max_examples


def template(messages, tools, **_):
    head = f"tools: {json.dumps(tools)}\n" if tools else ""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{head}{turns}<|im_start|>assistant\n"


def chat(*turns, tools=()):
    return Chat(tuple(Message(role, (TextPart(text),)) for role, text in turns), tuple(tools))


def characters_of(encoding, flags):
    """The characters that the flagged tokens hold, as a set."""
    held = set()
    for token, flag in enumerate(flags):
        span = encoding.token_to_chars(token)
        if flag and span is not None:
            held |= set(range(*span))
    return held


TEXTS = ["The quick brown fox", "naïve café 日本語", "a😀b👍👍c", "  spaces  \n\n", "<|im_start|>x<|im_end|>", "Zürich"]


@pytest.mark.parametrize("text", TEXTS)
def test_no_token_that_touches_a_protected_character_is_droppable(bpe, text):
    encoding = bpe.encode(text, add_special_tokens=False)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            spans = protected_spans(encoding, (Range(start, end),), len(text))
            free = ~covered(spans, len(encoding.ids))
            assert characters_of(encoding, free) <= set(range(start, end))
            # And nothing else is protected.
            for token in np.flatnonzero(~free):
                first, last = encoding.token_to_chars(int(token))
                assert first < start or last > end


@settings(max_examples=2 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), text=st.text(st.sampled_from("The quick é日本😀 \n<|im_start|>"), min_size=1, max_size=30))
def test_any_ranges(bpe, data, text):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    ranges = tuple(Range(*pair) for pair in zip(cuts[::2], cuts[1::2], strict=False))
    encoding = bpe.encode(text, add_special_tokens=False)
    free = ~covered(protected_spans(encoding, ranges, len(text)), len(encoding.ids))
    allowed = {at for each in ranges for at in range(each.start, each.end)}
    assert characters_of(encoding, free) <= allowed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), text=st.text(st.sampled_from("The quick é日本😀 \n<|im_start|>"), min_size=1, max_size=30))
def test_many_ranges_are_mapped_as_few_are(bpe, framed_bpe, stripping_bpe, data, text):
    backend = data.draw(st.sampled_from([bpe, framed_bpe, stripping_bpe]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    ranges = tuple(Range(*pair) for pair in zip(cuts[::2], cuts[1::2], strict=False))
    encoding, few = backend.encode(text), protected_tokens.FEW_RANGES
    found = []
    for protected_tokens.FEW_RANGES in (few, -1):
        found.append(protected_spans(encoding, ranges, len(text)))
    protected_tokens.FEW_RANGES = few
    assert found[0] == found[1]


@pytest.mark.parametrize("few", [32, -1])
def test_added_tokens_after_a_range_are_protected(monkeypatch, bpe, framed_bpe, stripping_bpe, few):
    monkeypatch.setattr(protected_tokens, "FEW_RANGES", few)
    text = "<<<<<em"
    for backend in (bpe, framed_bpe, stripping_bpe):
        encoding = backend.encode(text)
        free = ~covered(protected_spans(encoding, (Range(0, 1), Range(6, 7)), len(text)), len(encoding.ids))
        assert characters_of(encoding, free) <= {0, 6}


async def test_many_documents_take_no_quadratic_time(bpe):
    parts = tuple(TextPart("a b c d ", document=True) for _ in range(16_000))
    began_s = time.process_time()
    await PromptTokenizer(bpe, template).tokenize(Chat((Message("user", parts),), separate_parts=True))
    assert time.process_time() - began_s < 4.0


async def test_text_is_droppable_but_special_tokens_are_not(framed_bpe):
    tokenized = await PromptTokenizer(framed_bpe, None).tokenize(Text("The quick brown fox"))
    assert tokenized.ids.dtype == np.uint32
    assert framed_bpe.decode(tokenized.ids.tolist()) == "The quick brown fox"
    last = int(tokenized.ids.size) - 1
    assert tokenized.protected == (Span(0, 1), Span(last, last + 1))


async def test_chat_brings_its_own_special_tokens(framed_bpe):
    tokenized = await PromptTokenizer(framed_bpe, template).tokenize(chat(("user", "fox"), ("user", "dog")))
    ids = tokenized.ids.tolist()
    assert framed_bpe.token_to_id("<bos>") not in ids and ids[0] == framed_bpe.token_to_id("<|im_start|>")


async def test_chat_protects_template_system_and_question(bpe):
    prompt = chat(("system", "You answer."), ("user", "the lazy dog"), ("user", "what?"))
    tokenizer = PromptTokenizer(bpe, template)
    tokenized = await tokenizer.tokenize(prompt)
    free = ~covered(tokenized.protected, int(tokenized.ids.size))
    assert bpe.decode(tokenized.ids[free].tolist(), skip_special_tokens=False) == "the lazy dog"


async def test_tools_are_protected(bpe):
    prompt = chat(("user", "the lazy dog"), ("user", "what?"), tools=['{"name": "dog"}'])
    tokenized = await PromptTokenizer(bpe, template).tokenize(prompt)
    assert tokenized.protected[0].start == 0
    head = bpe.decode(tokenized.ids[: tokenized.protected[0].end].tolist(), skip_special_tokens=False)
    assert head.startswith('tools: [{"name": "dog"}]')


# Any Unicode except lone surrogates, with emoji, combining and right-to-left characters.
ANY = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("👍🏽e\u0301\u05e9\u05dc\u0627\u200d\ue000\ue001<|"),
    max_size=12,
)
PARTS = st.lists(st.builds(TextPart, ANY, st.booleans(), st.booleans()), max_size=4)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), PARTS), max_size=4)


@example(turns=[("system", [TextPart("\U0001b600", False, True), TextPart("\U0001f000", False, True)])], text="0")
@settings(max_examples=3 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(turns=TURNS, text=ANY.filter(bool))
async def test_only_documents_are_droppable_in_any_unicode(bpe, turns, text):
    """Exact to the character: a token is droppable if and only if all its characters are in documents."""
    turns = [*turns, ("user", [TextPart("Read: "), TextPart(text, document=True), TextPart(" why?")])]
    prompt = Chat(tuple(Message(role, tuple(parts)) for role, parts in turns), ('{"name": "töol"}',))
    tokenizer = PromptTokenizer(bpe, template)
    tokenized = await tokenizer.tokenize(prompt)
    rendered, offsets = await tokenizer.render_with_offsets(prompt)
    droppable = documents_in(rendered, prompt)
    free = ~covered(tokenized.protected, len(offsets))
    assert free.tolist() == [all(at in droppable for at in range(*held)) for held in offsets]


def documents_in(rendered, prompt):
    """The unprotected document characters of `rendered`, located by the known template."""
    found, at = set(), rendered.index("\n<|im_start|>") + 1
    for message in prompt.messages:
        at += len(f"<|im_start|>{message.role}\n")
        for part in message.parts:
            if part.document and not part.protected:
                found |= set(range(at, at + len(part.text)))
            at += len(part.text)
        at += len("<|im_end|>\n")
    assert rendered[at:] == "<|im_start|>assistant\n"
    return found


async def test_long_text_gives_the_same_tokens_in_a_thread(bpe):
    text = "The quick brown fox 😀 " * 600
    assert len(text) > INLINE_CHARACTERS
    tokenized = await PromptTokenizer(bpe, None).tokenize(Text(text))
    assert tokenized.ids.tolist() == bpe.encode(text).ids


async def test_a_long_chat_is_rendered_in_a_thread(bpe):
    threads = set()

    def noting(messages, tools, **_):
        threads.add(threading.current_thread())
        return template(messages, tools)

    tokenizer = PromptTokenizer(bpe, noting)
    await tokenizer.tokenize(chat(("user", "fox")))
    assert threads == {threading.main_thread()}
    threads.clear()
    await tokenizer.tokenize(chat(*[("user", "fox")] * 1000))
    assert threads and threading.main_thread() not in threads


async def test_a_repeated_prompt_is_remembered(bpe):
    tokenizer = PromptTokenizer(bpe, template)
    first = await tokenizer.tokenize(Text("The quick brown fox"))
    assert await tokenizer.tokenize(Text("The quick brown fox")) is first
    assert await tokenizer.tokenize(Text("The quick brown dog")) is not first


async def test_tenants_do_not_share_the_memory(bpe):
    """Otherwise response times would reveal other tenants' prompts."""
    tokenizer, prompt = PromptTokenizer(bpe, template), Text("The quick brown fox")
    first = await tokenizer.tokenize(prompt, "a")
    others = [await tokenizer.tokenize(prompt, salt) for salt in ("b", "")]
    assert all(other is not first and other.ids.tolist() == first.ids.tolist() for other in others)
    assert [each.salt for each in (first, *others)] == ["a", "b", ""]
    assert await tokenizer.tokenize(prompt, "a") is first


async def test_memory_is_bounded(bpe):
    tokenizer = PromptTokenizer(bpe, None, memory_bytes=100_000)
    texts = [f"The quick brown fox {number}" for number in range(500)]
    first = await tokenizer.tokenize(Text(texts[0]))
    with held_bytes() as held:
        for text in texts[1:]:
            await tokenizer.tokenize(Text(text))
    assert 50_000 < held() <= 100_000
    assert await tokenizer.tokenize(Text(texts[0])) is not first


def with_many_spans(number):
    words = f"The {number} {'quick brown fox ' * 500}".split()
    parts = [TextPart(f" {word}", protected=at % 2 == 0) for at, word in enumerate(words)]
    return Chat((Message("user", tuple(parts)), Message("user", (TextPart("fox"),))))


async def test_memory_counts_spans(bpe):
    tokenizer = PromptTokenizer(bpe, template, memory_bytes=3_000_000)
    await tokenizer.tokenize(with_many_spans(99))  # makes what the tokenizer keeps for all prompts
    tokenizer._memory.clear()
    with held_bytes() as held:
        for number in range(40):
            await tokenizer.tokenize(with_many_spans(number))
    assert all(len(each.protected) > 500 for each in tokenizer._memory.values())
    assert 2_000_000 < held() <= 3_000_000


async def test_a_prompt_larger_than_the_memory_is_not_remembered(bpe):
    tokenizer = PromptTokenizer(bpe, None, memory_bytes=1000)
    await tokenizer.tokenize(Text("The quick brown fox"))
    assert not tokenizer._memory


async def test_prompts_without_tokens_do_not_fill_the_memory(stripping_bpe):
    tokenizer = PromptTokenizer(stripping_bpe, None, memory_bytes=5000)
    for spaces in range(1, 9):
        await tokenizer.tokenize(Text(" " * spaces))
    assert len(tokenizer._memory) == 4


async def test_memory_distinguishes_protected_parts(bpe):
    """The same rendered text, once with a protected part."""
    tokenizer = PromptTokenizer(bpe, template)
    for protected in (False, True):
        part = TextPart("the lazy dog", protected)
        prompt = Chat((Message("user", (part,)), Message("user", (TextPart("?"),))))
        tokenized = await tokenizer.tokenize(prompt)
        assert bool(np.all(covered(tokenized.protected, int(tokenized.ids.size)))) is protected


async def test_memory_distinguishes_text_from_chat(framed_bpe):
    """A template that adds nothing: text gets the tokenizer's special tokens, the chat does not."""
    tokenizer = PromptTokenizer(framed_bpe, lambda messages, tools, **_: messages[0]["content"])
    words = "The quick brown fox jumps over the lazy dog. " * 40
    text, said = await tokenizer.tokenize(Text(words)), await tokenizer.tokenize(chat(("user", words)))
    assert text.ids.size == said.ids.size + 2


async def test_token_ids_are_used_unchanged():
    ids = np.array([5, 6, 7], dtype=np.uint32)
    tokenized = await PromptTokenizer(None, None).tokenize(TokenIds(ids, (Span(1, 2), Span(0, 1))))
    assert tokenized.ids is ids and tokenized.protected == (Span(0, 2),)


REFUSED = {
    "text without a tokenizer": (None, None, Text("x"), "prompt"),
    "chat without a template": ("bpe", None, chat(("user", "x")), "prompt"),
    "tool that is not JSON": ("bpe", template, chat(("user", "x"), tools=["{}", "{"]), "prompt.chat.tools_json[1]"),
    "tool that is a list": ("bpe", template, chat(("user", "x"), tools=["[]"]), "prompt.chat.tools_json[0]"),
    "span past the end": (None, None, TokenIds(np.ones(3, np.uint32), (Span(1, 4),)), "protected_spans"),
}


@pytest.mark.parametrize(("backend", "shape", "prompt", "field"), REFUSED.values(), ids=REFUSED)
async def test_refusals(bpe, backend, shape, prompt, field):
    with pytest.raises(InvalidRequest) as refusal:
        await PromptTokenizer(bpe if backend else None, shape).tokenize(prompt)
    assert refusal.value.field == field


async def test_text_that_the_normaliser_empties_has_no_tokens(stripping_bpe):
    assert (await PromptTokenizer(stripping_bpe, None).tokenize(Text(" \n "))).ids.size == 0


async def test_dropped_characters_shift_nothing(stripping_bpe):
    tokenized = await PromptTokenizer(stripping_bpe, None).tokenize(Text("  The fox  "))
    assert tokenized.protected == () and stripping_bpe.decode(tokenized.ids.tolist()) == "The fox"


async def test_offsets_lie_in_the_rendered_prompt(bpe):
    tokenizer = PromptTokenizer(bpe, template)
    prompt = chat(("user", "naïve 😀"))
    rendered, offsets = await tokenizer.render_with_offsets(prompt)
    assert rendered == tokenizer.render(prompt)
    assert offsets[0].tolist() == [0, len("<|im_start|>")] and offsets[-1][1] == len(rendered)


async def test_a_text_that_begins_with_the_first_token_begins_with_it_once(framed_bpe):
    """A client that has applied the chat template itself, as evaluation harnesses do."""
    tokenizer, first = PromptTokenizer(framed_bpe, None), framed_bpe.token_to_id("<bos>")
    plain, given = [await tokenizer.tokenize(Text(text)) for text in ("The fox", "<bos>The fox")]
    assert given.ids.tolist() == plain.ids.tolist() and given.ids[0] == first
    assert given.protected == plain.protected
    twice = await tokenizer.tokenize(Text("<bos><bos>The fox"))
    assert twice.ids.tolist() == [first, *plain.ids.tolist()]  # the caller wrote it twice
    assert encode(framed_bpe, "<bos>The fox", add_special_tokens=True) == plain.ids.tolist()


def without_later_systems(messages, tools, **_):
    return template([each for at, each in enumerate(messages) if at == 0 or each["role"] != "system"], tools)


def without_text_beside_calls(messages, tools, **_):
    return template([each | {"content": ""} if each.get("tool_calls") else each for each in messages], tools) + "".join(
        json.dumps(each.get("tool_calls", "")) for each in messages
    )


async def test_a_message_that_the_template_leaves_out_is_refused_by_its_number(bpe):
    prompt = chat(("system", "one"), ("user", "a"), ("system", "two"), ("user", "b"))
    with pytest.raises(InvalidRequest, match="leaves it out") as refusal:
        await PromptTokenizer(bpe, without_later_systems).tokenize(prompt)
    assert (refusal.value.field, refusal.value.value) == ("prompt.chat.messages[2]", "role system")
    assert (await PromptTokenizer(bpe, template).tokenize(prompt)).warnings == ()


async def test_the_text_of_an_answer_that_the_template_leaves_out_is_a_warning(bpe):
    called = Message("assistant", (TextPart("I look."),), tool_calls_json=('{"name": "look"}',))
    prompt = Chat((*chat(("user", "a")).messages, called, *chat(("user", "b")).messages))
    tokenized = await PromptTokenizer(bpe, without_text_beside_calls).tokenize(prompt)
    assert tokenized.warnings == ("the chat template leaves out the text of messages[1]",)


async def test_a_message_that_the_template_rewrites_is_a_warning(bpe):
    def shouting(messages, tools, **_):
        return template([each | {"content": each["content"].replace("fox", "FOX")} for each in messages], tools)

    prompt = chat(("user", "the lazy dog"), ("user", "the quick fox"), ("user", "why?"))
    tokenized = await PromptTokenizer(bpe, shouting).tokenize(prompt)
    free = ~covered(tokenized.protected, int(tokenized.ids.size))
    assert bpe.decode(tokenized.ids[free].tolist()) == "the lazy dog"
    assert tokenized.warnings == ("the chat template rewrites messages[1]: nothing of that is dropped",)


PARTED = Chat((Message("user", (TextPart("a lazy dog"), TextPart("why?"))),))


@pytest.mark.parametrize(
    ("separate", "reads_parts", "content"),
    [
        (False, False, "a lazy dogwhy?"),
        (False, True, "a lazy dogwhy?"),
        (True, False, "a lazy dog why?"),
        (True, True, [{"type": "text", "text": "a lazy dog"}, {"type": "text", "text": "why?"}]),
    ],
)
def test_parts_are_joined_as_they_are_or_as_sglangs_server_does(separate, reads_parts, content):
    seen = []

    def noting(messages, tools, **_):
        seen.append(messages[0]["content"])
        return template([{"role": "user", "content": "x"}], tools)

    ChatRenderer(noting, reads_parts=reads_parts).render(replace(PARTED, separate_parts=separate))
    assert seen == [content]


async def test_what_is_protected_is_told_in_words(bpe):
    prompt = chat(("system", "You answer."), ("user", "the lazy dog"), ("user", "what?"), tools=['{"name": "dog"}'])
    tokenized = await PromptTokenizer(bpe, template).tokenize(prompt)
    kinds = dict(tokenized.protected_kinds)
    assert set(kinds) == {"system messages", "the question", "tools and template"}
    assert kinds["system messages"] == len(bpe.encode("You answer.").ids)
    assert sum(kinds.values()) == np.count_nonzero(covered(tokenized.protected, int(tokenized.ids.size)))
    marked = Chat(
        (
            *prompt.messages[:1],
            Message("user", (TextPart("a dog", document=True), TextPart(" the fox"))),
        )
    )
    assert dict((await PromptTokenizer(bpe, template).tokenize(marked)).protected_kinds)["not marked as documents"] > 2
