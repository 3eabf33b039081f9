"""HTTP connections: a request has one end, and no client finds its connection closed by a shutdown."""

import asyncio
import http.client

import pytest

from ..fakes.http_api import MODEL

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = f'{{"model": "{MODEL}", "prompt": [1, 2], "max_tokens": 1}}'.encode()
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"content-length: %d\r\n" % len(BODY)
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def api(stack, open_http_api):
    return await open_http_api(stack)


async def replies(api, sent):
    """What is read until the server closes; at most for a second."""
    host, _, port = api.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    read = b""
    try:
        async with asyncio.timeout(1):
            while part := await reader.read(65_536):
                read += part
            return read, True
    except TimeoutError:
        return read, False
    finally:
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
        HEAD + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
        HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + CHUNKS,
    ],
    ids=["length first", "length last", "no length", "HTTP/1.0"],
)
async def test_a_request_with_two_ends_is_refused_and_its_connection_closed(api, sent):
    read, is_closed = await replies(api, sent + SMUGGLED)
    assert read.startswith(b"HTTP/1.1 400 ") and read.count(b"HTTP/1.1") == 1 and is_closed
    assert api.stack.target.calls == []


@pytest.mark.parametrize("sent", [HEAD + LENGTH + b"\r\n" + BODY, HEAD + CHUNKED + b"\r\n" + CHUNKS])
async def test_a_request_with_one_end_is_answered_and_so_is_the_next(api, sent):
    read, is_closed = await replies(api, sent + SMUGGLED)
    assert read.count(b"HTTP/1.1 200 ") == 2 and not is_closed


async def test_a_shutdown_first_asks_clients_to_leave(open_stack, open_http_api):
    """Keep-alive clients are answered for some seconds, and told not to use their connection again."""
    stack = await open_stack(lame_duck_s=1.0)
    api = await open_http_api(stack)
    await stack.server.set_serving(True)
    clients = [http.client.HTTPConnection(api.address, timeout=10) for _ in range(3)]

    def ask(client, path="/v1/models"):
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        return response.status, response.getheader("connection")

    for client in clients:
        assert await asyncio.to_thread(ask, client) == (200, None)
    draining = asyncio.create_task(stack.server.drain())
    await stack.settle(lambda: not stack.server.is_serving)
    for client in clients:
        assert await asyncio.to_thread(ask, client) == (200, "close")
        assert client.sock is None  # it connects again for the next request
    assert await asyncio.to_thread(ask, clients[0], "/health") == (503, "close")
    answer = await api.post({"model": MODEL, "prompt": [1, 2], "max_tokens": 1}, "/v1/completions")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert await stack.ask([1, 2])  # over gRPC
    assert not draining.done()
    await draining
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(ask, clients[0])
