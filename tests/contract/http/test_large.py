"""Large and hostile bodies over HTTP: bounded before they are processed, and processed outside the event loop."""

import asyncio
import json
import threading
from contextlib import AsyncExitStack
from functools import partial

import openai
import pytest
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.api.http import answering, body, chat_prompts, endpoints, reading, reply, requests
from presift.orchestrator.api.http.schema import ChatBody, PartReference
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.pipeline.events import Delta
from presift.orchestrator.prompt import tokenizing_limit
from presift.rpc.large_input import LARGE_BYTES

from ..fakes.api_keys import ACME, OTHER, bearer, key_authenticator
from ..fakes.http_api import MODEL
from ..fakes.scripted_pipeline import ScriptedHttpApi, decision, report

CHAT = [{"role": "user", "content": "abcde"}]
PARTS = [{"type": "text", "text": text} for text in "abc"]
# The steps that read a body.
READ = ("parse_json_object", "validate", "requests_from_body")


@pytest.fixture
async def api(open_stack, open_http_api):
    return await open_http_api(await open_stack(), max_body_bytes=2**26)


@pytest.fixture
def threads(monkeypatch):
    """name of a step -> whether it ran in the event loop's thread."""
    seen = {}

    def step(name, work, *args):
        seen.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
        return work(*args)

    for module, names in ((reading, READ[:1]), (endpoints, READ[1:]), (answering, ("json_bytes",))):
        for name in names:
            monkeypatch.setattr(module, name, partial(step, name, getattr(module, name)))
    return seen


async def test_a_large_body_is_processed_in_another_thread(api, threads):
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 5}
    assert (await api.post(asked)).status_code == 200
    assert threads == {name: {True} for name in (*READ, "json_bytes")}
    threads.clear()
    answer = await api.post(asked | {"messages": [{"role": "user", "content": "a" * LARGE_BYTES}]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert threads == {name: {False} for name in READ}


async def test_an_explanation_is_encoded_in_another_thread(api, threads):
    answer = await api.post({"model": MODEL, "messages": CHAT, "presift": {"explain": {"span_per_token": True}}})
    assert answer.json()["presift"]["explanation"]["spans"]
    assert threads["json_bytes"] == {False}


def test_references_cost_as_much_as_there_are_references():
    """A reference to a message stands for all its parts: it is not expanded to them."""
    messages = ChatBody.model_validate(
        {"model": MODEL, "messages": [{"role": "user", "content": PARTS * 100}]}
    ).messages
    references = [PartReference(message=number) for number in (0, -1) * 50]
    assert chat_prompts._places(messages, references, "presift.protected") == {(0, None)}


def test_references_to_the_same_parts_are_one():
    places = [{"message": 1, "part": 1}, {"message": -1, "part": 1}, {"message": 0}, {"message": 0, "part": 0}]
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": PARTS}]
    asked = ChatBody.model_validate({"model": MODEL, "messages": messages, "presift": {"protected": places}})
    made = requests.request_from_body(asked, 5, Caller(), "").prompt.messages
    assert [[part.protected for part in message.parts] for message in made] == [[True], [False, True, False]]


LISTS = {
    "messages": {"messages": [{}] * 1000},
    "parts": {"messages": [{"role": "user", "content": [{}] * 1000}]},
    "places": {"presift": {"protected": [{}] * 1000}},
    "spans": {"presift": {"protected_spans": [1] * 1000}},
    "tools": {"tools": [1] * 500},
    "unknown keys": {"presift": {f"key {number}": 1 for number in range(1000)}},
    "unknown keys of a message": {"messages": [{f"key {number}": 1 for number in range(1000)}]},
}


@pytest.mark.parametrize("change", LISTS.values(), ids=LISTS)
def test_only_a_few_of_many_errors_are_built(change):
    with pytest.raises(ValidationError) as wrong:
        ChatBody.model_validate({"model": MODEL, "messages": CHAT} | change)
    assert wrong.value.error_count() < 5


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"sampling": {"stop_token_ids": [1] * 257}}, "presift.sampling.stop_token_ids"),
        ({"sampling": {"top_k": [1] * 257}}, "presift.sampling.top_k"),
        ({"protected_spans": [{"start": 0, "end": 1}] * 16_385}, "presift.protected_spans"),
    ],
)
async def test_options_are_bounded_before_they_are_converted(api, monkeypatch, options, param):
    monkeypatch.setattr(endpoints, "requests_from_body", None)
    error = (await api.post({"model": MODEL, "prompt": [1], "presift": options}, "/v1/completions")).json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value"), error


def test_values_are_counted_before_they_are_parsed(monkeypatch):
    monkeypatch.setattr(body, "from_json", None)
    for raw in (
        b"[" + b"{}," * body.MAX_NESTED + b"{}]",
        b"[" * (body.MAX_NESTED + 1),
        b"{" + b'"k":1,' * body.MAX_NESTED + b"}",
        b"[" + b"1," * (body.MAX_VALUES + 1) + b"1]",
        b'{"a\\"":[' + b'"\\\\",' * (body.MAX_VALUES + 1) + b"1]}",
    ):
        with pytest.raises(InvalidRequest, match="the body has too many values"):
            body.parse_json_object(raw)


def test_commas_and_brackets_within_strings_do_not_count():
    text = ',:[{"\\' * (body.MAX_VALUES + 2)
    assert body.parse_json_object(json.dumps({"a": text, "b": [1, 2]}).encode()) == {"a": text, "b": [1, 2]}


class Uploads:
    """Connections on which a part of a body has arrived."""

    def __init__(self, api):
        self.api, self.exit = api, AsyncExitStack()

    async def begin(self, sent, length, key="none"):
        """-> the connection's reader, once `sent` bytes of a body of `length` were taken, or refused."""
        host, _, port = self.api.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.exit.callback(writer.close)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}"
        before = self.api.stack.server.calls.request_bytes
        writer.write(f"{head}\r\nauthorization: Bearer {key}\r\n\r\n".encode() + b" " * sent)
        arrived = asyncio.create_task(reader.readline())
        held = self.api.stack.server.calls
        await self.api.stack.settle(lambda: arrived.done() or held.request_bytes >= before + sent)
        return writer, arrived


async def test_the_bytes_of_bodies_that_arrive_are_bounded(open_stack, open_http_api):
    stack = await open_stack(received_bytes=3 * 2**19)
    api = await open_http_api(stack)
    uploads, half = Uploads(api), 2**19
    async with uploads.exit:
        first, arrived = await uploads.begin(half, 2 * half)
        _, other = await uploads.begin(half, 2 * half)
        assert not arrived.done() and not other.done()
        body = {"model": "other", "prompt": "a" * half}  # once it is read, the model is unknown
        refused = await api.post(body, "/v1/completions")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
        assert (error["presift"]["field"], error["presift"]["limit"]) == ("received_bytes", f"<= {3 * half}")
        assert 3 * half < int(error["presift"]["value"]) <= 3 * half + 2**17 and refused.headers["retry-after"] == "1"
        assert (await api.post(body | {"prompt": "abc"}, "/v1/completions")).status_code == 404
        first.close()
        await stack.settle(lambda: stack.server.calls.request_bytes == half)
        assert (await api.post(body, "/v1/completions")).status_code == 404
    await stack.settle(lambda: stack.server.calls.request_bytes == 0)


async def test_a_tenant_has_a_share_of_them(open_stack, open_http_api):
    """Before, twelve bodies of 32 MiB without their last byte held all of their bytes, whatever the tenant's limits."""
    keeper = key_authenticator()
    stack = await open_stack(auth_interceptors=(AuthInterceptor(keeper),), received_bytes=2**22)
    api = await open_http_api(stack, authenticator=keeper, key=ACME)
    uploads, share = Uploads(api), 2**20
    async with uploads.exit:
        _, arrived = await uploads.begin(share - 1000, share, ACME)
        assert not arrived.done()
        _, refused = await uploads.begin(share - 1000, share, ACME)
        assert b"429" in await asyncio.wait_for(refused, 20)
        asked = {"model": MODEL, "prompt": "a" * 2000, "max_tokens": 1}
        answer = await api.post(asked, "/v1/completions", **dict(bearer(ACME)))
        error = answer.json()["error"]["presift"]
        assert (error["field"], error["limit"]) == ("received_bytes of the tenant", f"<= {share}")
        answer = await api.post(asked | {"prompt": "abc"}, "/v1/completions", **dict(bearer(OTHER)))
        assert answer.status_code == 200


@pytest.mark.parametrize("tokens", [5, 0])
async def test_a_long_prompt_that_comes_late_in_a_stream_is_rendered_in_another_thread(monkeypatch, tokens):
    """An event that shows nothing came before: half a character, or all of an answer that is not wanted."""
    rendered, render = [], reply.Reply.event_lines

    def noting(reply, chunk):
        lines = render(reply, chunk)
        rendered.append((len(lines) >= LARGE_BYTES, threading.current_thread() is threading.main_thread()))
        return lines

    monkeypatch.setattr(reply.Reply, "event_lines", noting)
    api = ScriptedHttpApi([decision(), Delta("", (97,)), Delta("a", (98,)), report()])
    await api.text("a" * LARGE_BYTES, echo=True, stream=True, max_tokens=tokens)
    assert [in_loop for is_large, in_loop in rendered if is_large] == [False]
    assert all(in_loop for is_large, in_loop in rendered if not is_large)


async def test_token_ids_become_text_within_the_tokenizers_limit(monkeypatch):
    api = ScriptedHttpApi([decision(), Delta("a", (97,)), report()])
    limit, sizes = api.pipeline.parts.tokenizer.limit, []
    run = limit.run

    async def noting(decode, size):
        sizes.append(size)
        return await run(decode, size)

    monkeypatch.setattr(limit, "run", noting)
    prompt = [97] * 20_000
    assert len((await api.text(prompt, echo=True)).choices[0].text) == 20_001
    assert sizes == [20_000]
    await api.text(prompt, extra_body={"return_token_ids": True})
    assert sizes == [20_000], "the text is not shown"
    monkeypatch.setattr(tokenizing_limit, "MAX_TEXT_BYTES", 19_999)
    with pytest.raises(openai.BadRequestError) as refused:
        await api.text(prompt, echo=True)
    error = refused.value.body
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert error["presift"]["limit"] == "at most 19999, with echo"
