"""Chat templates as models have them, times the shapes of messages that clients send.

`templates/outcomes.txt` says what becomes of each. After a change, write it anew with PRESIFT_WRITE_OUTCOMES=1, and
read the difference.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from presift.core.errors import InvalidRequest
from presift.core.spans import covered
from presift.orchestrator.api.http.chat_prompts import chat_prompt
from presift.orchestrator.api.http.schema import ChatBody
from presift.orchestrator.domain.request import Chat
from presift.orchestrator.prompt.chat_tools import INVALID_ARGUMENTS
from presift.orchestrator.prompt.loader import load_tokenizer
from presift.orchestrator.prompt.protection import QUESTION_CHARACTERS
from presift.orchestrator.prompt.tokenizer import PromptTokenizer

from .message_shapes import SHAPES, TOOL, Body

# Fewer in `make test-fast`.
EXAMPLES = settings().max_examples

FOLDER = Path(__file__).parent / "templates"
TOKENS = json.loads((FOLDER / "tokens.json").read_text(encoding="utf-8"))
OUTCOMES = FOLDER / "outcomes.txt"
WRITES = "PRESIFT_WRITE_OUTCOMES" in os.environ
_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
_REASONING = re.compile(r"</?think>|◁/?think▷|\[/?THINK\]")


# A mark that no template writes.
UNUSED = "<|unused|>"


def longer(names: dict[str, Any]) -> list[str]:
    """Control tokens that begin or end as others, and then with what the texts of `bodies` begin or end with."""
    return [token for each in [*names["special"], *names["marks"]] for token in (f"{each}q", f"z{each}")]


def byte_level(names: dict[str, Any]) -> Tokenizer:
    """A token per byte, and the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: at for at, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    strips = names.get("right_stripped", False)
    names = names | {"special": [*names["special"], *longer(names)]}
    special = [AddedToken(each, special=True, normalized=False, rstrip=strips) for each in names["special"]]
    others = [*names["marks"], *names.get("others", ()), UNUSED]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(each, special=False, normalized=False) for each in others])
    return backend


@dataclass(frozen=True)
class Model:
    """A template with its tokenizer: as presift loads it, and as transformers does."""

    name: str
    tokenizer: PromptTokenizer
    reference: Any

    @property
    def control(self) -> list[str]:
        names = TOKENS[self.name]
        tokens = [*names["special"], *names["marks"], UNUSED]
        return [each for each in tokens if not _REASONING.fullmatch(each) and each != "/nothink"]

    def chat(self, body: Body) -> Chat:
        return chat_prompt(ChatBody.model_validate(body), self.tokenizer.template_variables)

    def tokenized(self, chat: Chat) -> Any:
        return asyncio.run(self.tokenizer.tokenize(chat))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    @cache
    def model(name: str) -> Model:
        folder = tmp_path_factory.mktemp(name)
        byte_level(TOKENS[name]).save(str(folder / "tokenizer.json"))
        ends = {f"{each}_token": TOKENS[name][each] for each in ("bos", "eos") if TOKENS[name][each]}
        template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **ends}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return Model(name, load_tokenizer(str(folder), 100_000), PreTrainedTokenizerFast.from_pretrained(str(folder)))

    return model


# -- transformers' own rendering of what the client sent --


def rendered_by_transformers(model: Model, body: Body) -> str | None:
    """None if the template refuses it."""
    continues = body.get("continue_final_message", False)
    reads_parts = TOKENS[model.name].get("reads_parts", False)
    tools = body.get("tools")
    # Some templates read parts of users' messages only, or definitions without OpenAI's wrapper.
    for as_parts in (reads_parts, False):
        messages = [_as_sglang_gives_it(message, as_parts) for message in body["messages"]]
        for definitions in (tools, tools and [tool["function"] for tool in tools]):
            with suppress(*_ERRORS):
                rendered = model.reference.apply_chat_template(
                    messages,
                    tools=definitions,
                    tokenize=False,
                    add_generation_prompt=not continues,
                    continue_final_message=continues,
                )
                return str(rendered)
    return None


def _as_sglang_gives_it(message: dict[str, Any], reads_parts: bool) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        texts = [each["text"] for each in content]
        as_parts = reads_parts and len(texts) > 1
        content = [{"type": "text", "text": text} for text in texts] if as_parts else " ".join(texts)
    made = message | {"content": content or ""}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [call | {"function": _with_object(call["function"])} for call in calls]
    return made


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    text = function["arguments"]
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        arguments = {INVALID_ARGUMENTS: text}
    return function | {"arguments": arguments}


# -- what must hold for each --


def outcome(model: Model, body: Body) -> str:
    """What becomes of it, in words; fails if a rule is broken."""
    expected, chat = rendered_by_transformers(model, body), model.chat(body)
    try:
        tokenized = model.tokenized(chat)
    except InvalidRequest as refusal:
        assert all(text not in refusal.message for text in _strings(body["messages"]) if len(text) > 10)
        assert (expected is None) == (refusal.field == "prompt.chat")
        return f"refused: {refusal.message}"
    rendered, offsets = asyncio.run(model.tokenizer.render_with_offsets(chat))
    assert rendered == expected
    ids = tokenized.ids.tolist()
    read = model.tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert without_stripped_space(model, read) == without_stripped_space(model, rendered)
    check_nothing_is_lost(chat, rendered, tokenized.warnings)
    check_protection(chat, rendered, kept_characters(rendered, offsets, tokenized), tokenized.warnings)
    check_control_tokens(model, body, tokenized)
    return f"warns: {'; '.join(tokenized.warnings)}" if tokenized.warnings else "ok"


def without_stripped_space(model: Model, text: str) -> str:
    """Without what its tokens take up on their right."""
    stripped = "|".join(map(re.escape, model.control)) if TOKENS[model.name].get("right_stripped") else "(?!)"
    return re.sub(rf"({stripped})\s+", r"\1", text)


def kept_characters(rendered: str, offsets: list[tuple[int, int]], tokenized: Any) -> Any:
    """bool[characters]: those with a protected token."""
    kept = np.zeros(len(rendered), dtype=np.bool_)
    for (start, end), is_kept in zip(offsets, covered(tokenized.protected, len(offsets)), strict=True):
        kept[start:end] |= is_kept
    return kept


def places(text: str, rendered: str) -> list[tuple[int, int]]:
    """Where a text stands: as it is, as a JSON string, or with its quotes escaped; without white space at its ends."""
    text = text.strip()
    if not text:
        return [(0, 0)]
    ways = {text, *(json.dumps(text, ensure_ascii=each)[1:-1] for each in (True, False))}
    ways.add(text.replace('"', '\\"'))  # as Hermes 3 writes it
    return [match.span() for way in ways for match in re.finditer(re.escape(way), rendered)]


def check_nothing_is_lost(chat: Chat, rendered: str, warnings: tuple[str, ...]) -> None:
    warned = " ".join(warnings)
    for at, message in enumerate(chat.messages):
        is_answer = message.role == "assistant"
        for number, part in enumerate(message.parts):
            if is_answer and any(_REASONING.search(later.text) for later in message.parts[number + 1 :]):
                continue  # it is reasoning
            text = _REASONING.split(part.text)[-1] if is_answer else part.text
            assert places(text, rendered) or (is_answer and f"messages[{at}]" in warned), text
    for at, text in _fixed(chat):
        assert places(text, rendered) or f"messages[{at}]" in warned.partition("leaves out tool calls")[2], text


def check_protection(chat: Chat, rendered: str, kept: Any, warnings: tuple[str, ...]) -> None:
    warned = " ".join(warnings)
    for at, number, is_droppable in droppable_parts(chat):
        for start, end in places(chat.messages[at].parts[number].text, rendered):
            assert is_droppable or kept[start:end].all(), (at, number)
            assert not is_droppable or not kept[start:end].any() or f"messages[{at}]" in warned, (at, number)
    for _, text in _fixed(chat):
        for start, end in places(text, rendered):
            assert kept[start:end].all(), text


def droppable_parts(chat: Chat) -> Iterator[tuple[int, int, bool]]:
    """(message, part, whether a policy may drop it), of those that are not blank."""
    last = max((at for at, message in enumerate(chat.messages) if message.role == "user"), default=-1)
    for at, message in enumerate(chat.messages):
        is_short = len(message.text) <= QUESTION_CHARACTERS
        is_continued = chat.continue_final_message and at == len(chat.messages) - 1
        for number, part in enumerate(message.parts):
            is_question = at == last and (is_short or 0 < number == len(message.parts) - 1)
            may = part.document if chat.has_documents else message.role != "system" and not is_question
            if part.text.strip() and not _REASONING.search(part.text):
                yield at, number, may and not (is_continued or part.protected or message.protected)


def _fixed(chat: Chat) -> Iterator[tuple[int | None, str]]:
    """Texts of definitions (None), and of the calls of messages. Kimi's template shows a call's id, not its name."""
    for function in (json.loads(each)["function"] for each in chat.tools_json):
        yield from ((None, function[key]) for key in ("name", "description"))
    for at, message in enumerate(chat.messages):
        for call in map(json.loads, message.tool_calls_json):
            arguments = _with_object(call["function"])["arguments"]
            yield from ((at, text) for text in (*arguments, *arguments.values()))
            if message.role == "assistant" and chat.tools_json:
                yield at, call["function"]["name"]


def check_control_tokens(model: Model, body: Body, tokenized: Any) -> None:
    """As many as of a chat without any in the client's texts, and the first token not twice. That chat is without
    private-use characters too, which must not change what the template is found to do."""
    harmless = model.tokenized(model.chat(_harmless(body, model.control)))
    assert harmless.warnings == tokenized.warnings
    ids, tokens = tokenized.ids.tolist(), [*model.control, *longer(TOKENS[model.name])]
    names = {model.tokenizer.backend.token_to_id(each): each for each in tokens}
    count, expected = (Counter(names[each] for each in some if each in names) for some in (ids, harmless.ids.tolist()))
    assert count == expected
    first = model.tokenizer.backend.token_to_id(TOKENS[model.name]["bos"] or "none")
    assert all(pair != (first, first) for pair in pairwise(ids))


def _harmless(value: Any, control: list[str]) -> Any:
    if isinstance(value, str):
        for each in control:
            value = value.replace(each, "word")
        return value.translate(dict.fromkeys(map(ord, "qz\ue000\ue001\U00100001"), "w"))
    if isinstance(value, list):
        return [_harmless(each, control) for each in value]
    return {name: _harmless(each, control) for name, each in value.items()} if isinstance(value, dict) else value


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    some = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in some for text in _strings(each)]


# -- each template with each shape --


def shaped(model: Model, shape: str) -> Body:
    own = [each for each in model.control if not is_tag(each)]
    return SHAPES[shape](" ".join(model.control), " ".join(own))


@cache
def known_outcomes() -> dict[tuple[str, str], str]:
    """From the table: (template, shape) to its outcome."""
    table, _, legend = OUTCOMES.read_text(encoding="utf-8").partition("\n\n")
    words = dict(line.split("  ", 1) for line in legend.splitlines())
    head, *rows = table.splitlines()
    names = head.split()
    return {
        (name, row[:24].strip()): words[code]
        for row in rows
        for name, code in zip(names, row[24:].split(), strict=True)
    }


def written(outcomes: dict[tuple[str, str], str]) -> str:
    """The table of all outcomes, with a code for each, then what the codes mean."""
    codes = {"ok": "ok"}
    for text in outcomes.values():
        codes.setdefault(text, f"{text[0].upper()}{len(codes)}")
    width = {name: len(name) + 2 for name in TOKENS}
    lines = [" " * 24 + "".join(name.ljust(width[name]) for name in TOKENS)]
    lines += [
        shape.ljust(24) + "".join(codes[outcomes[name, shape]].ljust(width[name]) for name in TOKENS)
        for shape in SHAPES
    ]
    legend = [f"{code}  {text}" for text, code in codes.items()]
    return "\n".join([*map(str.rstrip, lines), "", *legend, ""])


@pytest.fixture(scope="module")
def found() -> Iterator[dict[tuple[str, str], str]]:
    """The outcomes of this run, which become the table if that is to be written."""
    outcomes = dict[tuple[str, str], str]()
    yield outcomes
    if WRITES:
        OUTCOMES.write_text(written(outcomes), encoding="utf-8")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TOKENS)
def test_what_becomes_of_each(corpus, found, name, shape):
    model = corpus(name)
    found[name, shape] = outcome(model, shaped(model, shape))
    assert WRITES or found[name, shape] == known_outcomes()[name, shape]


# -- any messages --

# Private-use characters and numbers may look like placeholders.
PRIVATE = ("\ue000", "0000000", "\ue001", "\ue0000000001\ue001", "\\ue0000000000\\ue001", "\U00100001")
ODD = ("</think>", "<think>", "tell", *PRIVATE, '"', "\\", "\n", " ", "é😀")


def is_tag(token: str) -> bool:
    return re.fullmatch(r"</?\w+>", token) is not None


@st.composite
def bodies(draw: st.DrawFn, control: list[str]) -> Body:
    """More often than not with the roles that most templates accept."""

    def text(number: int, *, is_foreign: bool = False) -> str:
        """One that no other is, with anything in it."""
        marks = control if is_foreign else [each for each in control if not is_tag(each)]
        return f"q{number}z{''.join(draw(st.lists(st.sampled_from([*marks, *ODD]), max_size=4)))}q{number}z"

    name, count = f"q60z{draw(st.sampled_from(PRIVATE))}q60z", draw(st.integers(1, 5))
    usual = st.just([("user", "assistant")[at % 2] for at in range(count)])
    roles = draw(usual | st.lists(st.sampled_from(("system", "user", "assistant")), min_size=count, max_size=count))
    messages = [{"role": "system", "content": text(90)}] if draw(st.booleans()) else []
    for at, role in enumerate(roles):
        parts = [{"type": "text", "text": text(10 + at)}, {"type": "text", "text": text(20 + at)}]
        messages.append({"role": role, "content": draw(st.sampled_from([text(10 + at), parts, ""]))})
        if role == "assistant" and draw(st.booleans()):
            arguments = json.dumps({"word": text(30 + at, is_foreign=True)})
            call = {"id": f"call{at:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
            messages[-1]["tool_calls"] = [call]
            result = text(40 + at, is_foreign=True)
            messages.append({"role": "tool", "content": result, "tool_call_id": call["id"]})
    named = {"name": name, "description": text(50, is_foreign=True)}
    tools = {"tools": [TOOL | {"function": TOOL["function"] | named}]}
    return {"messages": messages} | draw(st.sampled_from([{}, tools]))


@pytest.mark.parametrize("name", TOKENS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=EXAMPLES // 4)
@given(st.data())
def test_any_messages(corpus, name, data):
    """Those that a template accepts keep every rule."""
    outcome(corpus(name), data.draw(bodies(corpus(name).control)))
