"""HTTP clients that disconnect, miss deadlines, stop reading or call during a drain: nothing is left behind."""

import asyncio
import json
import random
import socket
import ssl
from contextlib import suppress

import openai
import pytest

from presift.core.errors import DeadlineExceeded
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.api.http import body, call, connections, server
from presift.orchestrator.api.http.reply import Reply
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.rpc.security.certificates import TlsFiles

from ..fakes.authority import NAMES, Authority
from ..fakes.http_api import MODEL
from ..fakes.ledger import tasks
from ..fakes.services import hangs, model
from ..fakes.stack import ALL_ROUTES

LONG = list(range(100, 200))


@pytest.fixture
async def routed(open_stack):
    return await open_stack(routes=ALL_ROUTES)


@pytest.fixture
async def api(routed, open_http_api):
    return await open_http_api(routed)


def asked(**changes):
    return {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0} | changes


async def raw(api, payload):
    """A plain connection on which `payload` was sent."""
    host, _, port = api.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(payload)
    await writer.drain()
    return reader, writer


async def unread(api, payload, context=None):
    """A connection whose client reads nothing before `read_on`. Its buffers hold some KiB. TLS with a `context`."""
    host, _, port = api.address.rpartition(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=made, ssl=context, server_hostname=host if context else None)
    writer.transport.pause_reading()

    def served_here():
        return [each for each in api.server._server.server_state.connections if each.client == made.getsockname()]

    await api.stack.settle(served_here)
    (served,) = served_here()
    served.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    served.transport.set_write_buffer_limits(high=1024)
    writer.write(payload)
    return reader, writer


def read_on(writer):
    writer.transport.resume_reading()


async def stands_still(value):
    """Wait until `value()` no longer changes, in twenty iterations of the event loop."""
    last, same = value(), 0
    while same < 20:
        await asyncio.sleep(0.01)
        last, same = value(), same + 1 if value() == last else 0


def posted(values, path="/v1/completions"):
    data = json.dumps(values).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def is_over(api):
    stack = api.stack
    await stack.settle(lambda: stack.target.running == 0 and stack.server.calls.running == 0)
    assert stack.admission.running == stack.admission.waiting == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_disconnect_cancels_the_target(api, is_stream):
    api.stack.target.pause_after = 2
    reader, writer = await raw(api, posted(asked(stream=is_stream)))
    await api.stack.settle(lambda: api.stack.target.running == 1)
    if is_stream:
        assert b"200 OK" in await reader.readline()
    writer.close()
    await is_over(api)
    assert api.stack.target.cancelled == 1


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_disconnect_cancels_the_draft(api, is_stream):
    api.stack.draft.gate.clear()
    _, writer = await raw(api, posted(asked(prompt=LONG, stream=is_stream, presift={"route": "spec_pc"})))
    await api.stack.settle(lambda: len(api.stack.draft.calls) == 1)
    writer.close()
    await api.stack.settle(lambda: api.stack.draft.cancelled == 1)
    await is_over(api)
    assert api.stack.target.calls == []


async def test_a_disconnect_leaves_the_queue(open_stack, open_http_api):
    api = await open_http_api(await open_stack(limits=QueueLimits(max_running=1)))
    api.stack.target.pause_after = 1
    running = asyncio.create_task(api.client.completions.create(**asked()))
    await api.stack.settle(lambda: api.stack.target.running == 1)
    writers = [(await raw(api, posted(asked())))[1] for _ in range(5)]
    await api.stack.settle(lambda: api.stack.admission.waiting == 5)
    for writer in writers:
        writer.close()
    await api.stack.settle(lambda: api.stack.admission.waiting == 0)
    api.stack.target.gate.set()
    await running
    await is_over(api)
    assert len(api.stack.target.calls) == 1


async def test_a_disconnect_cancels_an_explanation(api):
    api.stack.draft.gate.clear()
    _, writer = await raw(api, posted(asked(prompt=LONG, presift={"route": "spec_pc", "explain": True})))
    await api.stack.settle(lambda: len(api.stack.draft.calls) == 1)
    writer.close()
    await api.stack.settle(lambda: api.stack.draft.cancelled == 1)
    await is_over(api)


async def test_a_disconnect_within_a_body_ends_the_call(api):
    _, writer = await raw(api, posted(asked())[:-10])
    await api.stack.settle(lambda: api.stack.server.calls.running == 1)
    writer.close()
    await is_over(api)
    assert api.stack.target.calls == []


async def test_the_clients_own_timeout_cancels_the_request(api):
    api.stack.target.pause_after = 1
    with pytest.raises(openai.APITimeoutError):
        await api.client.completions.create(**asked(), timeout=0.3)
    await is_over(api)
    assert api.stack.target.cancelled == 1


async def test_32_streams_of_which_some_disconnect(api):
    """Correct answers for those that stay, nothing left of those that disconnect: no task, no call, no slot."""
    stack, dice, cut = api.stack, random.Random(6), set()

    async def ask(number):
        options = {"route": "spec_pc"} if number % 2 else {}
        stream = await api.client.completions.create(
            **asked(prompt=[number + 1, *LONG[: number % 20], 7, 8, 9], max_tokens=30, stream=True),
            extra_body={"presift": options | {"token_ids": True}},
        )
        got = []
        async for chunk in stream:
            got += chunk.choices[0].token_ids
            if number in cut:
                await stream.close()
                return
        read = list(next(each for each in stack.target.calls if each.token_ids[0] == number + 1).token_ids)
        assert got == read[::-1][:30]

    await asyncio.gather(*(ask(number) for number in range(2)))  # so that lazily created tasks exist
    await is_over(api)
    before, stack.target.pause_after = len(tasks()), 2
    for turn in range(1, 4):
        cut = set(dice.sample(range(32), 4))
        stack.target.calls.clear()
        stack.target.gate.clear()
        asking = [asyncio.create_task(ask(number)) for number in range(32)]
        await stack.settle(lambda: stack.target.cancelled == 4 * turn)  # noqa: B023
        stack.target.gate.set()
        await asyncio.gather(*asking)
        await is_over(api)
        assert len(stack.target.calls) == 32 and stack.target.cancelled == 4 * turn
    await api.http.aclose()
    await api.client.close()
    await stack.settle(lambda: len(tasks()) <= before)


async def test_a_deadline_of_the_body_and_of_the_header(api):
    for change, headers in (({"presift": {"timeout_s": 0.3}}, {}), ({}, {"presift-timeout-s": "0.3"})):
        api.stack.target.faults.append(hangs)
        answer = await api.http.post("/v1/completions", json=asked(**change), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"
        await is_over(api)
    for said in ("soon", "0", "-1", "nan", "inf", "1e300"):
        wrong = await api.http.post("/v1/completions", json=asked(), headers={"presift-timeout-s": said})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "presift-timeout-s"), said


async def test_a_deadline_within_a_stream_is_its_last_event(api):
    api.stack.target.pause_after = 2
    stream = await api.client.completions.create(
        **asked(prompt="abcdef", stream=True), extra_body={"presift": {"timeout_s": 0.5}}
    )
    with pytest.raises(openai.APIError) as late:
        [chunk async for chunk in stream]
    assert late.value.code == "deadline_exceeded"
    await is_over(api)


async def test_a_drain_lets_running_requests_end(api):
    api.stack.target.pause_after = 2
    stream = await api.client.completions.create(**asked(prompt="abcdef", stream=True))
    draining = asyncio.create_task(api.stack.server.drain())
    await api.stack.settle(lambda: not api.server._is_listening())
    with pytest.raises(openai.APIConnectionError):
        await api.client.completions.create(**asked())
    api.stack.target.gate.set()
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "fedcb"
    await draining
    host, _, port = api.address.rpartition(":")
    with pytest.raises(OSError):
        await asyncio.open_connection(host, int(port))


async def test_a_drain_rejects_requests_on_open_connections(api):
    assert (await api.http.get("/v1/models")).status_code == 200
    api.stack.server.calls.close()  # as a drain begins; the connection is idle
    answer = await api.http.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_request_that_outlasts_the_drain_gets_an_error(open_stack, open_http_api, is_stream):
    api = await open_http_api(await open_stack(drain_s=0.3))
    api.stack.target.pause_after = 2
    asking = asyncio.create_task(api.http.post("/v1/completions", json=asked(prompt="abc", stream=is_stream)))
    await api.stack.settle(lambda: api.stack.target.running == 1)
    await asyncio.sleep(0.1)
    await api.stack.server.drain()
    answer = await asking
    if is_stream:
        *_, last = [line for line in answer.text.splitlines() if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "[DONE]" not in answer.text
    else:
        error = answer.json()["error"]
        assert answer.status_code == 503
    assert error["code"] == "shutting_down"
    await api.stack.settle(lambda: api.stack.target.cancelled == 1)


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(open_stack, open_http_api):
    roomy = model("target", context_tokens=2_000_000)
    api = await open_http_api(await open_stack(drain_s=0.3, target=roomy))
    api.stack.target.answer = lambda request: [65] * request.sampling.max_new_tokens
    options = {"stream": True, "max_tokens": 5_000, "presift": {"token_ids": True}}
    _, writer = await unread(api, posted(asked(**options)))
    await api.stack.settle(lambda: api.stack.target.calls and api.stack.target.running == 0)
    assert api.stack.server.calls.running == 1
    async with asyncio.timeout(20):
        await api.stack.server.drain()
    writer.close()


async def test_a_slow_reader_holds_no_slot(open_stack, open_http_api):
    tokens = 5_000
    roomy = model("target", context_tokens=2 * tokens)
    stack = await open_stack(limits=QueueLimits(max_running=1), target=roomy)
    api = await open_http_api(stack)
    stack.target.answer = lambda request: [65] * request.sampling.max_new_tokens
    options = {"stream": True, "max_tokens": tokens, "presift": {"token_ids": True}}
    reader, writer = await unread(api, posted(asked(**options)))
    # The target finishes all the same, and the slot is released.
    await stack.settle(lambda: len(stack.target.calls) == 1 and stack.target.running == 0)
    assert (await stack.ask([4, 5], max_new_tokens=3)).token_ids == [65] * 3
    stream = b""
    read_on(writer)
    while b"[DONE]" not in stream:
        stream += await reader.read(2**20)
    lines = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: {")]
    ids = [each for line in lines for choice in json.loads(line)["choices"] for each in choice["token_ids"]]
    assert len(ids) == tokens
    assert len(lines) < tokens, "waiting deltas are joined"
    writer.close()


@pytest.fixture
def clock():
    """The clock of `bounded`, in seconds."""
    return [0.0]


async def bounded(open_stack, open_http_api, clock, limit, **options):
    """An API, and what its clients have not read: at most `limit` bytes."""
    stack = await open_stack(answer_bytes=limit, **options)
    api, held = await open_http_api(stack), stack.pipeline.parts.answer_bytes
    held._clock = lambda: clock[0]
    return api, held


async def test_streams_that_are_not_read_are_bounded(open_stack, open_http_api, clock):
    """The one ends whose client has read nothing for longest, or else the one that asks for more. Without a bound each
    would be held until its client leaves."""
    # A token counts 40 bytes. Of each stream the buffers take some KiB: at most 2,000 tokens, joined to one event.
    roomy = model("target", context_tokens=10_000)
    api, held = await bounded(open_stack, open_http_api, clock, 230_000, target=roomy)
    stack, clients = api.stack, []
    stack.target.answer = lambda request: [65] * request.sampling.max_new_tokens
    options = {"stream": True, "presift": {"token_ids": True}}

    async def stream(tokens):
        calls = len(stack.target.calls)
        clients.append(await unread(api, posted(asked(max_tokens=tokens, **options))))
        await stack.settle(lambda: len(stack.target.calls) > calls and stack.target.running == 0)
        await stands_still(lambda: held.held)

    await stream(4_000)
    assert 80_000 <= (first := held.held) <= 160_000
    assert (await api.post(asked(max_tokens=3) | options, "/v1/completions")).status_code == 200
    await stream(7_000)
    assert held.held == first, "it asked for more than there was"
    clock[0] += 60
    await stream(7_000)
    assert 200_000 <= held.held <= 280_000, "the first one made room"
    told = []
    for reader, writer in clients:
        read_on(writer)
        told.append(await ended(reader))
        writer.close()
    for ended_early in told[:2]:
        error = json.loads(ended_early.rpartition(b"data: ")[2].partition(b"\n")[0])["error"]
        assert (error["code"], error["presift"]["field"]) == ("rate_limit_exceeded", "unread_answer_bytes")
    assert told[2].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await is_over(api)
    assert held.held == 0


async def test_a_stream_that_holds_much_closes_when_it_must_make_room(open_stack, open_http_api, clock):
    """Its client, which does not read, would not read an error either."""
    roomy = model("target", context_tokens=100_000)
    api, held = await bounded(open_stack, open_http_api, clock, 200_000, target=roomy)
    stack = api.stack
    stack.target.answer = lambda request: [65] * request.sampling.max_new_tokens
    reader, writer = await unread(api, posted(asked(prompt="a" * 90_000, max_tokens=3, stream=True, echo=True)))
    await stack.settle(lambda: held.held > 90_000 and stack.target.running == 0)
    clock[0] += 60
    answer = await api.post(asked(max_tokens=1500), "/v1/completions")
    assert answer.status_code == 200
    await is_over(api)
    assert held.held == 0
    read_on(writer)
    with suppress(ConnectionError):
        assert b"[DONE]" not in await reader.read()
    writer.close()


def tokenizing(size):
    """Its response has seven bytes a character."""
    return {"prompt": "a" * size, "return_token_strs": True}


async def whole(reader):
    """The size of a complete response's body."""
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        assert head.startswith(b"HTTP/1.1 200")
        return len(await reader.readexactly(int(length.partition(b" ")[2])))


async def test_whole_responses_that_are_not_read_are_bounded(open_stack, open_http_api, clock):
    """One for which there is no room is refused, before anything of it is sent."""
    api, held = await bounded(open_stack, open_http_api, clock, 2**20)
    reader, writer = await unread(api, posted(tokenizing(60_000), "/tokenize"))
    await api.stack.settle(lambda: held.held)
    kept = held.held
    refused = await api.post(tokenizing(100_000), "/tokenize")
    error = refused.json()["error"]
    assert (refused.status_code, error["presift"]["field"]) == (429, "unread_answer_bytes")
    assert "retry-after" in refused.headers
    assert (await api.post({"prompt": "a"}, "/tokenize")).status_code == 200
    await api.stack.settle(lambda: api.stack.server.calls.running == 1)
    assert held.held == kept
    read_on(writer)
    assert await whole(reader) == kept
    writer.close()
    await is_over(api)
    assert held.held == 0


async def test_a_whole_response_that_is_not_read_makes_room(open_stack, open_http_api, clock):
    """Its connection is closed. One that is larger, but is read, stays."""
    api, held = await bounded(open_stack, open_http_api, clock, 2**20)
    read, writer = await unread(api, posted(tokenizing(110_000), "/tokenize"))
    await api.stack.settle(lambda: held.held)
    size = held.held
    stalled, other = await unread(api, posted(tokenizing(30_000), "/tokenize"))
    await api.stack.settle(lambda: held.held > size)
    clock[0] += 60
    read_on(writer)
    async with asyncio.timeout(20):
        begin = await read.readexactly(300_000)
    writer.transport.pause_reading()
    await stands_still(lambda: [each.read_at_s for each in held._unread])
    assert (await api.post(tokenizing(20_000), "/tokenize")).status_code == 200
    await api.stack.settle(lambda: held.held == size)
    read_on(other)
    with suppress(ConnectionError):
        assert len(await stalled.read()) < 200_000, "the rest was forgotten"
    read_on(writer)
    rest = await read_until(read, b'"]}')
    assert len((begin + rest).partition(b"\r\n\r\n")[2]) == size
    for each in (writer, other):
        each.close()
    await is_over(api)
    assert held.held == 0


@pytest.mark.parametrize(("size", "has_tls"), [(9_000, False), (400_000, False), (400_000, True)])
async def test_a_whole_response_counts_until_it_was_read(open_stack, open_http_api, tmp_path, size, has_tls):
    """Also if it is one piece, and behind TLS, where asyncio takes whatever is written at once."""
    pair = Authority(tmp_path).pair("127.0.0.1")
    files = TlsFiles(pair.cert, pair.key, None, NAMES) if has_tls else None
    stack = await open_stack()
    api, held = await open_http_api(stack, tls=files), stack.pipeline.parts.answer_bytes
    context = ssl.create_default_context(cafile=pair.ca) if has_tls else None
    reader, writer = await unread(api, posted(tokenizing(size), "/tokenize"), context)
    await stack.settle(lambda: held.held)
    for _ in range(5):
        await stack.ask([1, 2, 3])
    assert (unread_bytes := held.held) > 7 * size
    await stack.settle(lambda: stack.server.calls.running == 1)
    read_on(writer)
    assert await whole(reader) == unread_bytes
    writer.close()
    await is_over(api)
    assert held.held == 0


async def ended(reader):
    """A chunked response."""
    return await read_until(reader, b"\r\n0\r\n\r\n")


async def test_silence_is_broken_once_it_is_long(stack, open_http_api):
    api = await open_http_api(stack, keepalive_s=0.1)
    api.stack.target.faults.append(_late(0.5))
    stream = await api.http.post("/v1/completions", json=asked(prompt="abc", stream=True))
    assert stream.text.startswith(": waiting\n\n") and stream.text.endswith("data: [DONE]\n\n")
    client = await api.client.completions.create(**asked(prompt="abc", stream=True))
    assert "".join([chunk.choices[0].text async for chunk in client]) == "cba"


async def test_by_default_a_stream_has_no_comments(api):
    """Load generators read every line as an event."""
    assert OrchestratorSettings(_cli_parse_args=[]).http_keepalive_comment_s is None
    api.stack.target.faults.append(_late(0.3))
    stream = await api.http.post("/v1/completions", json=asked(prompt="abc", stream=True))
    assert all(line.startswith("data: ") for line in stream.text.splitlines() if line)
    assert "presift-decision" in stream.headers
    assert not [task for task in tasks() if "alive" in str(task)]


async def read_until(reader, mark):
    said = b""
    async with asyncio.timeout(20):
        while mark not in said:
            more = await reader.read(2**16)
            assert more, said
            said += more
    return said


def events_of(said):
    return [json.loads(line[6:]) for line in said.split(b"\n") if line.startswith(b"data: {")]


@pytest.mark.parametrize("has_usage", [False, True])
async def test_silence_before_the_decision_is_broken_too(routed, open_http_api, has_usage):
    """While a draft scores or a request is queued: the decision is then in the first chunk, too late for the header."""
    api = await open_http_api(routed, keepalive_s=0.1)
    api.stack.draft.gate.clear()
    options = {"stream": True, "stream_options": {"include_usage": has_usage}, "presift": {"route": "spec_pc"}}
    reader, writer = await raw(api, posted(asked(prompt=LONG, **options)))
    head = await read_until(reader, b": waiting\n\n")
    assert b"200 OK" in head and b"presift-decision" not in head
    api.stack.draft.gate.set()
    first, *_, last = events_of(await read_until(reader, b"[DONE]"))
    assert first["presift"]["decision"] == last["presift"]["decision"]
    assert first["presift"]["decision"]["route"] == "spec_pc" and "usage" not in first["presift"]
    assert first["choices"][0]["text"] == "" and ("usage" in first) == has_usage
    writer.close()
    await is_over(api)


async def test_a_prompt_comes_after_the_decision_that_ends_a_silence(routed, open_http_api):
    """It may be long: with its choice it is made in a thread, and counted."""
    api = await open_http_api(routed, keepalive_s=0.1)
    api.stack.draft.gate.clear()
    text = "abcdefghij" * 10
    options = {"stream": True, "echo": True, "presift": {"route": "spec_pc"}}
    reader, writer = await raw(api, posted(asked(prompt=text, **options)))
    await read_until(reader, b": waiting\n\n")
    api.stack.draft.gate.set()
    first, *others = events_of(await read_until(reader, b"[DONE]"))
    assert first["presift"]["decision"] and first["choices"] == []
    texts = [choice["text"] for each in others for choice in each["choices"]]
    assert texts[0].startswith(text) and "".join(texts).count(text) == 1
    writer.close()
    await is_over(api)


async def test_an_error_after_a_broken_silence_is_the_last_event(routed, open_http_api, telemetry):
    api = await open_http_api(routed, keepalive_s=0.05)
    api.stack.draft.gate.clear()
    api.stack.target.faults.append(hangs)
    options = {"stream": True, "presift": {"route": "spec_pc", "timeout_s": 0.5}}
    answer = await api.http.post("/v1/completions", json=asked(prompt=LONG, **options))
    assert answer.status_code == 200 and "[DONE]" not in answer.text
    *_, error = events_of(answer.content)
    assert error["error"]["code"] == "deadline_exceeded"
    await is_over(api)
    (span,) = [span for span in telemetry.spans if span.name == "POST /v1/completions"]
    assert span.attributes["error.type"] == "deadline_exceeded" and not span.status.is_ok


async def test_a_client_that_does_not_read_its_error_is_disconnected(stack, api, monkeypatch):
    monkeypatch.setattr(call, "SEND_ERROR_S", 0.05)
    closed = asyncio.Event()

    async def refuses(asked):
        raise DeadlineExceeded("the deadline passed")

    async def stands_still(message=None):
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "headers": [], "path_params": {}, "state": {call.ABORT: closed.set}}
    handler = call.CallHandler(call.Access(None, stack.server.calls), "/", refuses, AnswerBytes(2**20))
    async with asyncio.timeout(20):
        await asyncio.create_task(handler(scope, stands_still, stands_still))
    assert closed.is_set()
    await stack.settle(lambda: stack.server.calls.running == 0)
    await raw(api, b"")
    await api.stack.settle(lambda: api.server._server.server_state.connections)
    (connection, *_) = api.server._server.server_state.connections
    connection.app_state[call.ABORT]()
    await api.stack.settle(lambda: not api.server._server.server_state.connections)


async def test_a_response_is_complete_only_when_its_end_was_sent():
    sent = []

    async def send(message):
        if not message.get("more_body", True):
            raise TimeoutError
        sent.append(message)

    reply = Reply(send)
    async with reply.event_stream():
        await reply.send_event({})
        with pytest.raises(TimeoutError):
            await reply.send_done()
    assert reply.is_ending and not reply.is_complete
    with pytest.raises(TimeoutError):
        await reply.send_error(DeadlineExceeded("the deadline passed"))
    assert reply.error == "deadline_exceeded"


async def test_bytes_after_an_early_response_are_not_logged(api, caplog):
    head = b"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    reader, writer = await raw(api, head)
    assert b"404" in await reader.readline()
    writer.write(b"no length\r\n")
    async with asyncio.timeout(20):
        with suppress(ConnectionError):
            await reader.read()
    await api.stack.settle(lambda: len(api.server._server.server_state.connections) == 0)
    assert caplog.records == []
    writer.close()


@pytest.mark.parametrize("header", ["baggage", "tracestate"])
async def test_unauthenticated_trace_headers_are_not_logged(api, caplog, header):
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    answer = await api.http.get("/v1/models", headers={header: "xylophone;;=", "traceparent": parent})
    assert answer.status_code == 200
    assert "xylophone" not in caplog.text and "opentelemetry" not in caplog.text


async def test_a_server_that_does_not_stop_is_cancelled(monkeypatch):
    monkeypatch.setattr(server, "_LAST_S", 0.05)
    made = server.HttpServer(None, server.HttpOptions("127.0.0.1:0"))
    await made.start()
    ended, made._serving = made._serving, asyncio.create_task(asyncio.Event().wait())
    async with asyncio.timeout(20):
        await made.stop(0)
        await ended
    assert made._serving.cancelled()


def _late(seconds):
    async def late(context):
        await asyncio.sleep(seconds)

    return late


async def test_calls_of_both_apis_are_limited_together(open_stack, open_http_api):
    stack = await open_stack()
    api = await open_http_api(stack)
    stack.server.calls._max_calls = 2
    stack.target.pause_after = 1
    over_grpc = asyncio.create_task(stack.ask([1, 2, 3]))
    over_http = asyncio.create_task(api.client.completions.create(**asked()))
    await stack.settle(lambda: stack.target.running == 2)
    with pytest.raises(openai.RateLimitError) as refused:
        await api.client.models.list()
    assert refused.value.body["presift"]["field"] == "calls"
    assert (await stack.refused([1])).field == "calls"
    assert (await api.http.get("/health")).status_code == 200
    stack.target.gate.set()
    await asyncio.gather(over_grpc, over_http)


async def test_incomplete_headers_time_out(stack, open_http_api, monkeypatch):
    monkeypatch.setattr(server, "_IDLE_S", 0.3)
    api = await open_http_api(stack)
    silent, _ = await raw(api, b"")
    trickled, writer = await raw(api, b"POST /v1/completions HTTP/1.1\r\n")

    async def trickle():
        while True:
            writer.write(b"x: 1\r\n")
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(20):
        assert await silent.read() == b""
        with suppress(ConnectionError):
            assert await trickled.read() == b""
    trickling.cancel()
    await is_over(api)


async def test_an_incomplete_body_times_out(api, monkeypatch):
    monkeypatch.setattr(body, "BODY_S", 0.3)
    reader, writer = await raw(api, posted(asked())[:-10])
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"408" in head.splitlines()[0]
    writer.close()
    await is_over(api)


async def test_connections_have_keepalive(api):
    await raw(api, b"")
    await api.stack.settle(lambda: api.server._server.server_state.connections)
    (connection, *_) = api.server._server.server_state.connections
    made = connection.transport.get_extra_info("socket")
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == dict(connections._KEEPALIVE)[socket.TCP_KEEPIDLE]


async def test_health_follows_the_service(api):
    stack = api.stack
    assert (await api.http.get("/health")).json() == {"status": "serving"}
    await stack.server.set_serving(False)
    assert (await api.http.get("/health")).status_code == 503
    await stack.server.set_serving(True)
    assert (await api.http.get("/health")).status_code == 200
