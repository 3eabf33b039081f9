"""The settings of the HTTP API reach what they are for."""

import asyncio

import httpx
import openai
import pytest
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.app import open_http
from presift.orchestrator.config.settings import OrchestratorSettings

from ..fakes.api_keys import ACME, key_authenticator
from ..fakes.http_api import MODEL

ASKED = {"model": MODEL, "prompt": "abc", "max_tokens": 3, "stream": True}
PAGE = "https://app.example.com"


@pytest.fixture
async def opened(stack):
    """flags -> a client of the HTTP API that these settings open."""
    servers, clients = [], []

    async def opened(*flags, authenticator=None):
        settings = OrchestratorSettings(_cli_parse_args=["--http-listen", "127.0.0.1:0", *flags])
        servers.append(open_http(settings, stack.pipeline, authenticator, stack.server))
        clients.append(httpx.AsyncClient(base_url=f"http://{await servers[-1].start()}", timeout=60))
        return clients[-1]

    yield opened
    for client, server in zip(clients, servers, strict=True):
        await client.aclose()
        await server.stop(0)


async def late(context):
    await asyncio.sleep(0.4)


async def test_comments_in_silent_streams(stack, opened):
    for flags, has_comments in (((), False), (("--http-keepalive-comment-s", "0.05"), True)):
        http = await opened(*flags)
        stack.target.faults.append(late)
        answer = await http.post("/v1/completions", json=ASKED)
        assert answer.text.endswith("data: [DONE]\n\n") and (": waiting" in answer.text) == has_comments


async def test_origins_and_pages(opened):
    plain, open_to_a_page = await opened(), await opened("--http-origins", PAGE, "--no-http-docs")
    for http, status, docs in ((plain, 403, 200), (open_to_a_page, 200, 404)):
        assert (await http.get("/v1/models", headers={"origin": PAGE})).status_code == status
        assert (await http.get("/docs")).status_code == docs


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/target"),
        *[
            ("POST", f"/v1/{each}")
            for each in ("chat/completions", "completions", "responses", "messages", "messages/count_tokens")
        ],
        ("POST", "/v1/tokenize"),
        ("POST", "/v1/detokenize"),
    ],
)
async def test_a_rebound_page_is_refused_everywhere(stack, opened, method, path):
    """DNS rebinding: to the browser the page's request has the same origin, so it has no Origin header."""
    http = await opened()
    answer = await http.request(method, path, json=ASKED if method == "POST" else None, headers={"host": "evil.test"})
    assert answer.status_code == 403, answer.text
    assert "http_hosts" in str(answer.json()["error"]) and stack.target.calls == []
    assert (await http.get("/health", headers={"host": "evil.test"})).status_code == 200


async def test_names_that_are_set_are_answered(opened):
    http = await opened("--http-hosts", "presift.internal, Box.Local")
    for host, status in (("presift.internal:8000", 200), ("box.local", 200), ("localhost", 200), ("evil.test", 403)):
        assert (await http.get("/v1/models", headers={"host": host})).status_code == status, host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_real_clients_are_answered(opened, host):
    """What OpenAI's own library sends as Host."""
    url = f"http://{host}:{(await opened()).base_url.port}"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [each.id async for each in client.models.list()] == [MODEL]


async def test_with_keys_any_name_is_answered(opened):
    """Who has no key is refused anyway, and a key is for a service with a name."""
    http = await opened(authenticator=key_authenticator())
    headers = {"host": "presift.example.com", "authorization": f"Bearer {ACME}"}
    assert (await http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("flag", ["http://box.local", "box.local:8000", "*", "a b"])
def test_what_is_no_host_name_is_refused_at_start(flag):
    with pytest.raises(ValidationError, match="http_hosts"):
        OrchestratorSettings(_cli_parse_args=["--http-hosts", flag])


def test_any_origin_without_keys_ends_the_start(stack):
    with pytest.raises(InvalidRequest, match="http_origins"):
        open_http(
            OrchestratorSettings(_cli_parse_args=["--http-listen", "127.0.0.1:0", "--http-origins", "*"]),
            stack.pipeline,
            None,
            stack.server,
        )
