"""`python -m presift.orchestrator --http-listen`: a real process with both APIs, in front of a real target service."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import ssl
import sys
import time

import httpx
import openai
import pytest

from ..fakes.api_keys import ACME, ENTRIES
from ..fakes.authority import Authority
from ..fakes.fake_services import engine, services_behind
from ..fakes.stack import LOCAL

TOKEN_IDS = {"presift": {"token_ids": True, "sampling": {"ignore_eos": True}}}

# A thread of this test that sends its request later than this after it connected shows nothing: services wait for twice
# as long.
LATE_S = 0.25


@pytest.fixture
async def start():
    """flags -> a process, and its first lines."""
    started, target_engine = [], engine(token_delay_s=0.01)

    async def start(*flags):
        command = [sys.executable, "-m", "presift.orchestrator", "--no-calibrate", f"--listen={LOCAL}", *addresses]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe = asyncio.subprocess.PIPE
        started.append(
            await asyncio.create_subprocess_exec(*command, *flags, stdout=pipe, stderr=pipe, env=environment)
        )
        return started[-1]

    start.engine = target_engine
    async with services_behind(target_engine) as addresses:
        yield start
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def url_of(process):
    line = (await process.stdout.readline()).decode()
    assert " takes HTTP on " in line, (line, (await process.stderr.read()).decode())
    assert " ready on " in (await process.stdout.readline()).decode()
    return line.partition(" takes HTTP on ")[2].strip()


async def test_it_answers_and_drains(start):
    process = await start("--http-listen=127.0.0.1:0", "--drain-s=20", "--lame-duck-s=0")
    url = f"http://{await url_of(process)}"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(
            model="echo", prompt=[5, 6, 7], max_tokens=100, temperature=0, stream=True, extra_body=TOKEN_IDS
        )
        first = await anext(aiter(stream))
        process.send_signal(signal.SIGTERM)
        tokens = list(first.choices[0].token_ids)
        async for chunk in stream:
            tokens += chunk.choices[0].token_ids
        assert tokens == ([5, 6, 7] * 34)[:100]
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()
    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def test_keep_alive_clients_lose_no_request_at_a_shutdown(start):
    process = await start("--http-listen=127.0.0.1:0", "--lame-duck-s=2")
    clients = [http.client.HTTPConnection(await url_of(process), timeout=20)]
    clients += [http.client.HTTPConnection(clients[0].host, clients[0].port, timeout=20) for _ in range(11)]

    def ask(client):
        client.request("GET", "/v1/models")
        response = client.getresponse()
        response.read()
        return response.status, response.getheader("connection")

    assert {await asyncio.to_thread(ask, client) for client in clients} == {(200, None)}
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert {await asyncio.to_thread(ask, client) for client in clients} == {(200, "close")}
    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def test_a_shutdown_refuses_connections_but_no_request(start):
    process = await start("--http-listen=127.0.0.1:0", "--lame-duck-s=0.2")
    address, statuses = await url_of(process), []

    def ask_until_refused():
        while True:
            client = http.client.HTTPConnection(address, timeout=20)
            try:
                client.connect()
            except ConnectionRefusedError:
                return
            connected = time.monotonic()
            with contextlib.closing(client), contextlib.suppress(ConnectionError):  # closed before it was read
                client.request("GET", "/v1/models")
                took_s = time.monotonic() - connected
                status = client.getresponse().status
                if took_s < LATE_S:
                    statuses.append(status)

    asking = [asyncio.create_task(asyncio.to_thread(ask_until_refused)) for _ in range(4)]
    await asyncio.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        await asyncio.gather(*asking)
        assert await process.wait() == 0
    assert set(statuses) == {200}


async def test_a_request_that_outlasts_the_drain_gets_an_error(start):
    process = await start("--http-listen=127.0.0.1:0", "--drain-s=0.2", "--lame-duck-s=0")
    url = f"http://{await url_of(process)}"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(
            model="echo", prompt=[5], max_tokens=3000, temperature=0, stream=True, extra_body=TOKEN_IDS
        )
        await anext(aiter(stream))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as told:
            [chunk async for chunk in stream]
    assert told.value.code == "shutting_down"
    async with asyncio.timeout(30):
        assert await process.wait() == 0
        while start.engine.aborted < 1:
            await asyncio.sleep(0.02)


async def test_its_settings(start, tmp_path):
    """Keys, the largest body, model names, tokens to generate, TLS; no key and no prompt is in the log."""
    keys = tmp_path / "keys.json"
    entries = [{"name": each.name, "tenant": each.tenant, "sha256": each.sha256} for each in ENTRIES]
    keys.write_text(json.dumps({"keys": entries}))
    pair = Authority(tmp_path / "ours").pair("127.0.0.1")
    process = await start(
        *("--http-listen=127.0.0.1:0", "--http-models=gpt-4o", "--http-max-tokens=3", "--max-message-mib=1"),
        *(f"--api-keys-file={keys}", f"--tls-cert={pair.cert}", f"--tls-key={pair.key}", "--log-level=DEBUG"),
    )
    url = f"https://{await url_of(process)}"
    context = ssl.create_default_context(cafile=pair.ca)
    async with httpx.AsyncClient(base_url=url, verify=context, headers={"authorization": f"Bearer {ACME}"}) as http:
        asked = {"model": "gpt-4o", "prompt": [5, 6, 7, 8], "presift": {"token_ids": True}}
        answer = (await http.post("/v1/completions", json=asked)).json()
        assert answer["choices"][0]["token_ids"] == [5, 6, 7] and answer["model"] == "echo"
        assert (
            await http.post("/v1/completions", json=asked, headers={"authorization": "Bearer x"})
        ).status_code == 401
        assert (await http.get("/health")).json() == {"status": "serving"}
        large = {"model": "echo", "prompt": "xylophone" * 200_000}
        assert (await http.post("/v1/completions", json=large)).status_code == 413
        wrong = {"model": "echo", "prompt": "xylophone"}
        assert (await http.post("/v1/completions", json=wrong)).json()["error"]["param"] == "prompt"
    process.send_signal(signal.SIGTERM)
    _, log = await process.communicate()
    assert process.returncode == 0 and ACME not in log.decode() and "xylophone" not in log.decode()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--http-listen=0.0.0.0:0"], "http_listen is 0.0.0.0:0, open to unauthenticated callers"),
        (["--http-listen=127.0.0.1:99999"], "no such port"),
        (["--http-listen=8000"], "http_listen"),
        (["--http-listen=nowhere.invalid:0", "--insecure"], "cannot listen on nowhere.invalid:0 (http_listen)"),
        (["--http-max-tokens=0"], "http_max_tokens"),
        (["--http-listen=127.0.0.1:0", "--http-origins=*"], "http_origins is *"),
    ],
)
async def test_invalid_settings_end_the_start(start, flags, said):
    process = await start(*flags)
    async with asyncio.timeout(60):
        out, log = await process.communicate()
    assert process.returncode != 0 and said in (out + log).decode().replace("-", "_" if "max" in said else "-")
    assert " ready on " not in out.decode()


async def test_without_the_setting_there_is_no_http(start):
    process = await start()
    assert " ready on " in (await process.stdout.readline()).decode()
