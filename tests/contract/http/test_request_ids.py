"""`x-request-id`: taken from the request if it is sane, else made; in every response, span and log line."""

import json
import logging
import re

import pytest

from presift.telemetry.logs import LogFormat, set_up

from ..fakes.http_api import MODEL

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "abcde"}], "max_tokens": 5}
MADE = re.compile(r"req_[0-9a-f]{32}")


@pytest.fixture
async def api(stack, open_http_api):
    return await open_http_api(stack, origins=["https://app.example.com"])


GOOD = ["a", "req_123", "0af7651916cd43dd8448eb211c80319c", "1-67891233:abc/DEF+==@x", "x" * 128]
BAD = ["", "x" * 129, "a b", "a;b", "a\tb", "<script>", '"', "é", "a,b"]


@pytest.mark.parametrize("given", GOOD)
async def test_a_sane_id_comes_back(api, given):
    answer = await api.post(CHAT, x_request_id=given)
    assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", BAD)
async def test_another_is_replaced(api, given):
    answer = await api.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": given.encode()})
    assert answer.status_code == 200 and MADE.fullmatch(answer.headers["x-request-id"])


async def test_two_ids_are_replaced(api):
    headers = [("x-request-id", "a"), ("x-request-id", "b")]
    answer = await api.http.get("/v1/models", headers=headers)
    assert MADE.fullmatch(answer.headers["x-request-id"])


async def test_every_response_has_one(api):
    preflight = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    responses = [
        await api.post(CHAT),
        await api.post(CHAT | {"stream": True}),
        await api.post(CHAT | {"messages": []}),
        await api.http.get("/nowhere"),
        await api.http.get("/v1/completions"),
        await api.http.get("/health"),
        await api.http.get("/docs"),
        await api.http.options("/v1/chat/completions", headers=preflight),
    ]
    assert [each.status_code for each in responses] == [200, 200, 400, 404, 405, 200, 200, 200]
    ids = [each.headers["x-request-id"] for each in responses]
    assert all(MADE.fullmatch(each) for each in ids) and len(set(ids)) == len(ids)


async def test_openais_client_knows_it(api):
    answer = await api.client.chat.completions.create(**CHAT, extra_headers={"x-request-id": "mine-1"})
    assert answer._request_id == "mine-1"


async def test_it_is_in_the_span_and_in_log_lines(api, telemetry, capfd, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    set_up("INFO", LogFormat.JSON)
    monkeypatch.setattr(api.stack.pipeline, "generate", lambda request, deadline: broken())

    async def broken():
        logging.getLogger("presift.x").warning("within")
        raise ValueError("xylophone")
        yield

    answer = await api.post(CHAT, x_request_id="mine-2")
    assert answer.status_code == 500
    (span,) = [each for each in telemetry.spans if each.name == "POST /v1/chat/completions"]
    assert span.attributes["presift.request_id"] == "mine-2"
    logging.getLogger("presift.x").warning("outside")
    root.handlers[0].flush()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["message"]: line.get("request_id") for line in lines if line["logger"] != "httpx"} == {
        "within": "mine-2",
        "unexpected ValueError": "mine-2",
        "outside": None,
    }
    assert "xylophone" not in answer.text
