"""Tools in the chat templates of real models: Qwen's has a place for them, SmolLM2's has none."""

import json

import pytest

from presift.core.errors import InvalidRequest
from presift.core.spans import covered
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.loader import load_tokenizer
from presift_demo_models.fetch import ensure_model

pytestmark = pytest.mark.models

TOOL = json.dumps({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}})
CALL = json.dumps({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}})
RESULT = "It rains in the morning, and it is dry later on. " * 30


def said(role, text, **given):
    return Message(role, (TextPart(text),), **given)


TURNS = (
    said("user", "What is the weather like in Bern?"),
    said("assistant", "", tool_calls_json=(CALL,)),
    said("tool", RESULT, tool_call_id="c1", name="weather"),
    said("user", "Shall I take an umbrella?"),
)


@pytest.mark.pair
async def test_a_conversation_with_tools_in_qwens_template(presift_home):
    tokenizer = load_tokenizer(str(ensure_model("qwen2.5-coder-0.5b-instruct", presift_home, print)), 0)
    chat = Chat(TURNS, (TOOL,))
    tokenized = await tokenizer.tokenize(chat)
    rendered, offsets = await tokenizer.render_with_offsets(chat)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>' in rendered
    assert f"<tool_response>\n{RESULT}\n</tool_response>" in rendered
    kept = covered(tokenized.protected, len(offsets))
    dropped = "".join(rendered[start:end] for (start, end), is_kept in zip(offsets, kept, strict=True) if not is_kept)
    assert "morning" in dropped and "Bern?" in dropped
    for word in ("tool_call", '"city"', "# Tools", "umbrella"):
        assert word not in dropped


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (Chat((said("user", "hi"),), (TOOL,)), "prompt.chat.tools_json"),
        (Chat(TURNS), "prompt.chat.messages[1].tool_calls_json"),
    ],
)
async def test_smollm2_has_no_place_for_tools(presift_home, chat, field):
    tokenizer = load_tokenizer(str(ensure_model("smollm2-135m-instruct", presift_home, print)), 0)
    with pytest.raises(InvalidRequest, match="does not support tool") as refusal:
        await tokenizer.tokenize(chat)
    assert refusal.value.field == field
