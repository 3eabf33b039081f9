"""What a response is made of counts with the answers that wait, from its first token until it was sent."""

import asyncio
import gc
import weakref
from array import array

import pytest

from presift.core.errors import Overloaded
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.api.http.answers import Answer
from presift.orchestrator.api.http.reply import Reply
from presift.orchestrator.pipeline.events import Delta
from presift.v1 import target_pb2

from ..fakes.http_api import MODEL
from ..fakes.scripted_pipeline import ScriptedHttpApi, decision, report
from ..fakes.services import model

LIMIT = 2**20


async def send_nothing(message):
    pass


@pytest.fixture
async def api(open_stack, open_http_api, monkeypatch):
    """Its target answers with as many tokens as are wanted, and then waits for its gate. `kept_tokens` is the number of
    those that responses were made of."""
    stack = await open_stack(answer_bytes=LIMIT, target=model("target", context_tokens=100_000))
    stack.target.answer = lambda request: [65] * request.sampling.max_new_tokens
    api, keep = await open_http_api(stack), Answer.add
    api.kept_tokens = 0

    def keeping(answer, delta):
        keep(answer, delta)
        api.kept_tokens += len(delta.token_ids)

    monkeypatch.setattr(Answer, "add", keeping)
    return api


def asked(tokens, **changes):
    return {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": tokens, "temperature": 0} | changes


def held(api):
    return api.stack.pipeline.parts.answer_bytes


def most_held(api):
    """-> a list with the most bytes that were held at once."""
    answers, most = held(api), [0]
    count = answers._count

    def counting(answer, more):
        count(answer, more)
        most[0] = max(most[0], answers.held)

    answers._count = counting
    return most


async def paused(api, tokens, path="/v1/completions", **changes):
    """A request of which all tokens are kept, but the target has not sent the end."""
    api.stack.target.pause_after, before = tokens, api.kept_tokens
    asking = asyncio.create_task(api.post(asked(tokens, **changes), path))
    await api.stack.settle(lambda: api.kept_tokens == before + tokens)
    return asking


async def test_a_whole_answer_counts_while_it_is_generated(api):
    asking = await paused(api, 2000)
    assert 40 * 2000 <= held(api).held <= 200 * 2000
    api.stack.target.gate.set()
    answer = await asking
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2000
    await api.stack.settle(lambda: held(api).held == 0)


async def test_the_one_ends_that_asks_for_more_than_there_is(api):
    first = await paused(api, 5000)
    kept = held(api).held
    assert LIMIT / 2 < kept < LIMIT
    api.stack.target.pause_after = None
    refused = await api.post(asked(20_000), "/v1/completions")
    error = refused.json()["error"]
    assert (refused.status_code, error["presift"]["field"]) == (429, "unread_answer_bytes")
    await api.stack.settle(lambda: held(api).held == kept)
    assert (await api.post(asked(10), "/v1/completions")).status_code == 200
    api.stack.target.gate.set()
    assert (await first).status_code == 200


async def test_an_answer_that_is_alone_may_take_more_than_all_room(api):
    most = most_held(api)
    answer = await api.post(asked(20_000), "/v1/completions")
    assert answer.status_code == 200 and most[0] > LIMIT


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_counts_twice(api, stream):
    """Not where the pipeline hands over what it counted, and not where a response replaces what it was made of. The
    lines of a stream are made while this is still needed."""
    tokens, most = 500, most_held(api)

    def spoil(usage):
        top = [target_pb2.TopLogprob(token_id=each, logprob=-1) for each in range(20)]
        each = target_pb2.TokenLogprob(token_id=1, logprob=-1, top=top)
        usage.prompt_logprobs.extend([each] * tokens)

    api.stack.target.spoil = spoil
    answer = await api.post(asked(1, echo=True, logprobs=20, stream=stream), "/v1/completions")
    assert answer.status_code == 200
    content = tokens * (160 + 20 * 136) + (len(answer.content) if stream else 0)
    assert content <= most[0] <= 1.1 * content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "changes"),
    [("/v1/responses", {"input": "abc"}), ("/v1/messages", {"messages": [{"role": "user", "content": "abc"}]})],
)
async def test_what_other_apis_keep_counts(api, path, changes, stream):
    limit = {"max_output_tokens": 1000} if path == "/v1/responses" else {"max_tokens": 1000}
    body = {"model": MODEL, "stream": stream} | changes | limit
    api.stack.target.pause_after = 1000
    asking = asyncio.create_task(api.post(body, path))
    await api.stack.settle(lambda: held(api).held >= 40 * 990)
    api.stack.target.gate.set()
    assert (await asking).status_code == 200
    await api.stack.settle(lambda: held(api).held == 0)


async def test_a_stream_that_must_make_room_ends_with_an_error(api):
    """Of a stream with the prompt's log probabilities nothing is sent before its end."""
    first = await paused(api, 5000, stream=True, echo=True, logprobs=0)
    api.stack.target.pause_after = None
    other = asyncio.create_task(api.post(asked(10_000, stream=True, echo=True, logprobs=0), "/v1/completions"))
    refused = await other
    assert refused.status_code == 429 and refused.json()["error"]["presift"]["field"] == "unread_answer_bytes"
    api.stack.target.gate.set()
    assert "[DONE]" in (await first).text


async def test_a_stream_keeps_nothing_of_what_it_has_sent(monkeypatch):
    """But the number of tokens, for the usage of its chunks."""
    kept = []
    events = [decision(), Delta("ab", (97, 98)), Delta("c", (99,)), report(completion_tokens=3)]
    monkeypatch.setattr("presift.orchestrator.api.http.answers.Answer.add", lambda answer, delta: kept.append(delta))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await ScriptedHttpApi(events).chat(stream=True, logprobs=True, stream_options=options)
    assert not kept and "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "abc"
    assert [chunk.usage.completion_tokens for chunk in chunks] == [2, 3, 3, 3]


async def test_a_response_replaces_what_it_was_made_of():
    answers, reply = AnswerBytes(LIMIT), Reply(send_nothing)
    with answers.call("acme", reply.drop) as reply.waiting:
        reply.hold(700)
        reply.hold(300)
        assert answers.held == 1000
        await reply.send_bytes(200, b"x" * 1200)
        assert answers.held == 1200
    assert answers.held == 0


async def test_a_sent_response_is_forgotten_although_timers_keep_its_calls_context():
    """uvicorn's keep-alive timer of the connection, or one for a deadline that is an hour away."""

    async def call():
        answers, reply, raw = AnswerBytes(LIMIT), Reply(send_nothing), array("B", bytes(200_000))
        with answers.call("acme", reply.drop) as reply.waiting:
            timer = asyncio.get_running_loop().call_later(3600, print)
            sent = weakref.ref(raw)
            await reply.send_bytes(200, raw)
            del raw
            await reply.finish()
            assert sent() is None
        return timer, weakref.ref(reply)

    timer, reply = await call()
    gc.collect()
    assert reply() is None
    timer.cancel()


NO_ROOM = Overloaded("unread_answer_bytes", 2, "<= 1", 1.0)


@pytest.mark.parametrize(("size", "is_closed"), [(1000, False), (100_000, True)])
async def test_a_blocked_stream_that_holds_much_is_closed_when_it_must_make_room(size, is_closed):
    """It would keep what it holds until its client reads or disconnects. Others end with an error."""
    answers, closed, read = AnswerBytes(LIMIT), asyncio.Event(), asyncio.Event()
    reply = Reply(send_nothing, None, read.wait, closed.set)
    with answers.call("acme", reply.drop) as reply.waiting:
        async with reply.event_stream():
            reply.hold(size)
            sending = asyncio.create_task(reply.send_lines(b"data: {}"))
            await asyncio.sleep(0)
            reply.drop(NO_ROOM)
            assert closed.is_set() == is_closed
            read.set()
            await sending


async def test_a_complete_stream_does_not_fail():
    """Although it was to make room while its last lines were sent."""
    answers = AnswerBytes(LIMIT)

    async def send(message):
        if not message.get("more_body", True):
            reply.drop(NO_ROOM)

    reply = Reply(send)
    with answers.call("acme", reply.drop) as reply.waiting:
        async with reply.event_stream():
            await reply.send_event({})
            await reply.send_done()
        await reply.finish()
    assert reply.is_complete
