"""Descriptions of tools that are marked as documents may be dropped, and nothing else of a definition."""

import json

import numpy as np
import pytest

from presift.core.errors import InvalidRequest
from presift.core.spans import covered
from presift.orchestrator.api.grpc.requests import prompt_from_wire
from presift.orchestrator.api.http.chat_prompts import chat_prompt
from presift.orchestrator.api.http.schema import ChatBody
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.v1 import orchestrator_pb2

LONG = 'Searches "everything"\nthat the lazy dog has read.'
PARAMETERS = {
    "type": "object",
    "properties": {
        "words": {"type": "string", "description": "what to look for"},
        "description": {"type": "string"},
        "sort": {"anyOf": [{"description": "how", "type": "string"}, {"type": "null"}]},
    },
}
SEARCH = {"type": "function", "function": {"name": "search", "description": LONG, "parameters": PARAMETERS}}
OTHER = {"type": "function", "function": {"name": "other", "description": "kept as it is"}}
MARKED = [SEARCH | {"document": True}, OTHER, OTHER | {"document": False}]


def template(messages, tools, **_):
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"tools: {json.dumps(tools, ensure_ascii=False)}\n{turns}"


def as_xml(messages, tools, **_):
    """Writes texts as they are, as Qwen3-Coder's template does."""
    functions = [tool["function"] for tool in tools or ()]
    written = ""
    for each in functions:
        names = each["parameters"].get("properties", {}).items()
        parameters = "".join(f"<{name}>{of.get('description', '')}" for name, of in names)
        written += f"<{each['name']}>{each['description']}{parameters}"
    return written + "".join(f"<|im_start|>{m['content']}" for m in messages)


def shouting(messages, tools, **_):
    """Rewrites definitions in a way that nobody knows."""
    return f"tools: {json.dumps(tools).upper()}\n{template(messages, None)}"


def http_chat(tools):
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "why?"}], "tools": tools})
    return chat_prompt(body, frozenset())


def grpc_chat(tools):
    message = orchestrator_pb2.Message(role="user", parts=[orchestrator_pb2.TextPart(text="why?")])
    chat = orchestrator_pb2.Chat(messages=[message], tools_json=[json.dumps(tool) for tool in tools])
    return prompt_from_wire(orchestrator_pb2.Prompt(chat=chat))


@pytest.mark.parametrize("made", [http_chat, grpc_chat])
def test_the_mark_is_read_and_the_template_does_not_see_it(made):
    chat = made(MARKED)
    assert chat.document_tools == {0} and chat.has_documents
    assert [json.loads(tool) for tool in chat.tools_json] == [SEARCH, OTHER, OTHER]
    assert made([OTHER]).document_tools == frozenset() and not made([OTHER]).has_documents


@pytest.mark.parametrize("made", [http_chat, grpc_chat])
def test_another_value_of_the_mark_is_refused(made):
    with pytest.raises(InvalidRequest, match="true or false") as refused:
        made([OTHER, SEARCH | {"document": "yes"}])
    assert refused.value.field.endswith("[1].document")


async def dropped(bpe, shape, chat):
    """The droppable texts, in one string, and the warnings."""
    tokenizer = PromptTokenizer(bpe, shape)
    tokenized = await tokenizer.tokenize(chat)
    rendered, offsets = await tokenizer.render_with_offsets(chat)
    free = np.flatnonzero(~covered(tokenized.protected, len(offsets)))
    return "".join(rendered[slice(*offsets[at])] for at in free), tokenized.warnings


async def test_descriptions_alone_may_be_dropped(bpe):
    text, warnings = await dropped(bpe, template, http_chat(MARKED))
    assert warnings == ()
    for piece in ("everything", "lazy dog", "look for", "how"):
        assert piece in text
    for piece in ("search", "kept", "description", "anyOf", "why", "{", "words"):
        assert piece not in text


async def test_a_template_that_writes_them_as_they_are(bpe):
    text, _ = await dropped(bpe, as_xml, http_chat([SEARCH | {"document": True}]))
    assert "lazy dog" in text and "search" not in text and "why" not in text


async def test_without_the_mark_definitions_are_kept(bpe):
    text, _ = await dropped(bpe, template, http_chat([SEARCH, OTHER]))
    assert text == ""


async def test_a_tool_that_the_template_rewrites_is_kept_and_named(bpe):
    text, warnings = await dropped(bpe, shouting, http_chat(MARKED))
    assert text == "" and warnings == ("the chat template rewrites tools[0]: nothing of that is dropped",)


async def test_beside_marked_messages(bpe):
    first = Message("user", (TextPart("the quick fox", document=True),))
    chat = Chat((first, Message("user", (TextPart("why?"),))), (json.dumps(SEARCH),), document_tools=frozenset({0}))
    text, _ = await dropped(bpe, template, chat)
    assert "quick fox" in text and "lazy dog" in text and "why" not in text
