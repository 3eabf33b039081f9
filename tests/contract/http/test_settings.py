"""The settings of the HTTP API reach what they are for."""

import asyncio

import httpx
import pytest

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.app import open_http
from presift.orchestrator.config.settings import OrchestratorSettings

from ..fakes.openai_door import MODEL

ASKED = {"model": MODEL, "prompt": "abc", "max_tokens": 3, "stream": True}
PAGE = "https://app.example.com"


@pytest.fixture
async def opened(house):
    """flags -> a client of the HTTP API that these settings open."""
    servers, clients = [], []

    async def opened(*flags):
        settings = OrchestratorSettings(_cli_parse_args=["--http-listen", "127.0.0.1:0", *flags])
        servers.append(open_http(settings, house.pipeline, None, house.server))
        clients.append(httpx.AsyncClient(base_url=f"http://{await servers[-1].start()}", timeout=60))
        return clients[-1]

    yield opened
    for client, server in zip(clients, servers, strict=True):
        await client.aclose()
        await server.stop(0)


async def late(context):
    await asyncio.sleep(0.4)


async def test_comments_in_silent_streams(house, opened):
    for flags, has_comments in (((), False), (("--http-keepalive-comment-s", "0.05"), True)):
        http = await opened(*flags)
        house.target.faults.append(late)
        answer = await http.post("/v1/completions", json=ASKED)
        assert answer.text.endswith("data: [DONE]\n\n") and (": waiting" in answer.text) == has_comments


async def test_origins_and_pages(opened):
    plain, open_to_a_page = await opened(), await opened("--http-origins", PAGE, "--no-http-docs")
    for http, status, docs in ((plain, 403, 200), (open_to_a_page, 200, 404)):
        assert (await http.get("/v1/models", headers={"origin": PAGE})).status_code == status
        assert (await http.get("/docs")).status_code == docs


def test_any_origin_without_keys_ends_the_start(house):
    with pytest.raises(InvalidRequest, match="http_origins"):
        open_http(
            OrchestratorSettings(_cli_parse_args=["--http-listen", "127.0.0.1:0", "--http-origins", "*"]),
            house.pipeline,
            None,
            house.server,
        )
