"""The OpenAI-compatible door with OpenAI's own client: whole answers and streams, what they say, and that it is what gRPC
says."""

import asyncio
import json

import openai
import pytest

from presift.orchestrator.http.telling import told

from .fakes.house import request
from .fakes.openai_door import MODEL

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "abcde"}]
TEXT = "<system>Be brief.</system><user>abcde</user><assistant>"
LONG = "".join(chr(97 + i % 26) for i in range(100))
LONG_CHAT = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "?"},
]


@pytest.fixture
async def door(house, open_door):
    return await open_door(house)


def backwards(text, tokens=5):
    """The fake target's answer."""
    return text[::-1][:tokens]


async def test_a_chat(door):
    answer = await door.client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "target"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", backwards(TEXT))
    assert choice.finish_reason == "length" and choice.logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(TEXT), 5)
    assert answer.usage.total_tokens == len(TEXT) + 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.presift["decision"]["route"] == "full"
    assert answer.presift["decision"]["reason"] == "within_budget" or "threshold" in str(answer.presift)
