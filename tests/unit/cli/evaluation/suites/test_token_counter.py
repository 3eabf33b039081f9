"""Tokens are counted by the stack."""

from types import SimpleNamespace

import grpc
import pytest

from presift.cli.evaluation.suites.token_counter import TokenCounter
from presift_client import InvalidRequest, Overloaded, PromptTooLong
from presift_client.errors import Details


class Client:
    """Raises or returns what is listed, in order."""

    def __init__(self, *results):
        self.results = list(results)
        self.asked = []

    async def explain(self, **options):
        self.asked.append(options)
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(decision=SimpleNamespace(prompt_tokens=result))


def error(kind, **details):
    return kind("message", grpc.StatusCode.UNKNOWN, Details(**details))


async def test_texts_and_chats():
    client, chat = Client(7, 9), [{"role": "user", "content": "hi"}]
    counter = TokenCounter(client, 5.0)
    assert (await counter.text("some"), await counter.chat(chat), await counter.text("")) == (7, 9, 0)
    same = {"route": "full", "max_new_tokens": 1, "deadline_s": 5.0}
    assert client.asked == [{"prompt": "some"} | same, {"messages": chat} | same]


async def test_longer_than_the_context():
    client = Client(error(PromptTooLong, value="5000 tokens"), error(PromptTooLong, value="more than 900 tokens"))
    counter = TokenCounter(client, 5.0)
    assert (await counter.text("long"), await counter.text("longer")) == (5000, 900)


async def test_overload_is_waited_for():
    counter = TokenCounter(Client(error(Overloaded, retry_after_s=0.0), 3, error(Overloaded)), 5.0)
    assert await counter.text("text") == 3
    with pytest.raises(Overloaded):
        await counter.text("text")


async def test_other_errors_end_the_count():
    with pytest.raises(InvalidRequest):
        await TokenCounter(Client(error(InvalidRequest)), 5.0).text("text")
