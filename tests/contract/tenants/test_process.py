"""`python -m presift.orchestrator --api-keys-file --jwks-file`: a real process in front of a real target service,
which counts cached tokens. Keys are revoked while it runs, and no key is in its log."""

import asyncio
import json
import os
import re
import signal
import sys
import time

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from presift.orchestrator.api.auth.api_keys import digest_of, new_key
from presift.v1 import orchestrator_pb2_grpc

from ..fakes.api_keys import bearer
from ..fakes.fake_services import engine, services_behind
from ..fakes.stack import LOCAL, Answer, refusal_of, request

PROMPT = list(range(1, 301))
KEYS = {"acme": new_key(), "other": new_key()}
SALT = "xylophone-salt"


def text(**keys):
    entries = [{"name": tenant, "tenant": tenant, "sha256": digest_of(key)} for tenant, key in keys.items()]
    return json.dumps({"keys": entries, "tenants": {"metered": {"tokens_per_minute": 10}}})


class Orchestrator:
    def __init__(self, process, log):
        self.process, self.log = process, log

    async def ready(self):
        line = (await self.process.stdout.readline()).decode()
        found = re.match(r"presift orchestrator ready on (\S+): echo", line)
        assert found, line + self.log.read_text()
        self.channel = grpc.aio.insecure_channel(found.group(1))
        self.stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self.channel)

    async def ask(self, key):
        return Answer.of([event async for event in self.stub.Generate(request(PROMPT), metadata=bearer(key))])

    async def logged(self, said):
        async with asyncio.timeout(30):
            while said not in self.log.read_text():
                await asyncio.sleep(0.02)


@pytest.fixture
async def start(tmp_path):
    """flags -> an orchestrator in front of an echo target; killed at the end."""
    started = []

    async def start(*flags):
        command = [
            sys.executable,
            "-m",
            "presift.orchestrator",
            "--no-calibrate",
            "--listen",
            LOCAL,
            *addresses,
            *flags,
        ]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PRESIFT_ORCHESTRATOR_TENANT_SALT": SALT,
        }
        log = tmp_path / "orchestrator.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=environment
            )
        started.append(Orchestrator(process, log))
        return started[-1]

    async with services_behind(engine()) as addresses:
        yield start
        for each in started:
            if each.process.returncode is None:
                each.process.kill()
            await each.process.wait()
            if hasattr(each, "channel"):
                await each.channel.close()


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(text(**KEYS))
    return path


async def test_two_tenants_do_not_share_the_cache_of_the_same_prompt(start, keys_file):
    orchestrator = await start("--api-keys-file", str(keys_file))
    await orchestrator.ready()
    cached = [
        (await orchestrator.ask(KEYS[tenant])).usage.cached_tokens for tenant in ("acme", "other", "acme", "other")
    ]
    assert cached == [0, 0, 299, 299]


async def test_a_tenant_has_the_same_salt_over_grpc_and_http(start, keys_file):
    """Both APIs get the deployment's salt: what one has cached, the other one finds."""
    orchestrator = await start("--api-keys-file", str(keys_file), "--http-listen", LOCAL, "--http-max-tokens", "5")
    line = (await orchestrator.process.stdout.readline()).decode()
    address = re.fullmatch(r"presift orchestrator takes HTTP on (\S+)\n", line)[1]
    await orchestrator.ready()
    assert (await orchestrator.ask(KEYS["acme"])).usage.cached_tokens == 0
    async with httpx.AsyncClient(base_url=f"http://{address}", headers=dict(bearer(KEYS["acme"]))) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        answer = await client.post("/v1/completions", json={"model": model, "prompt": PROMPT}, timeout=60)
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) - 1


async def test_keys_are_revoked_while_it_runs_and_none_is_logged(start, keys_file):
    orchestrator = await start("--api-keys-file", str(keys_file), "--log-level", "DEBUG")
    await orchestrator.ready()
    await orchestrator.ask(KEYS["acme"])
    keys_file.write_text(text(other=KEYS["other"]))
    assert (await refusal_of(orchestrator.ask(KEYS["acme"]))).code == "UNAUTHENTICATED"
    await orchestrator.ask(KEYS["other"])

    keys_file.write_text(f'{{"keys": [{{"name": "a", "tenant": "acme", "sha256": "{KEYS["acme"]}"}}]}}')
    orchestrator.process.send_signal(signal.SIGHUP)
    await orchestrator.logged("changed files are invalid, the previous ones stay in use: keys.json:1: ")
    await orchestrator.ask(KEYS["other"])

    newest = new_key()
    keys_file.write_text(text(metered=newest))
    orchestrator.process.send_signal(signal.SIGHUP)
    await orchestrator.logged("reloaded: ")
    assert (await refusal_of(orchestrator.ask(newest))).field == "tokens_per_minute"
    assert (await refusal_of(orchestrator.ask(KEYS["other"]))).code == "UNAUTHENTICATED"

    orchestrator.process.send_signal(signal.SIGTERM)
    assert await orchestrator.process.wait() == 0
    log = orchestrator.log.read_text()
    secrets = [*KEYS.values(), newest, SALT, *map(digest_of, [*KEYS.values(), newest])]
    assert all(secret not in log for secret in secrets)


async def test_tokens_authenticate_too(start, keys_file, tmp_path):
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key())) | {"kid": "a"}
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public]}))

    def token(**changes):
        said = {"iss": "https://issuer", "aud": "presift", "exp": int(time.time()) + 300, "tenant": "acme"}
        return jwt.encode(said | changes, private, "ES256", {"kid": "a"})

    rules = ("--jwt-issuer", "https://issuer", "--jwt-audience", "presift")
    orchestrator = await start("--api-keys-file", str(keys_file), "--jwks-file", str(jwks), *rules)
    await orchestrator.ready()
    assert (await orchestrator.ask(token())).usage.cached_tokens == 0
    assert (
        await orchestrator.ask(KEYS["acme"])
    ).usage.cached_tokens == 299  # the same tenant, however it authenticates
    expired = await refusal_of(orchestrator.ask(token(exp=int(time.time()) - 300)))
    assert (expired.code, expired.message) == ("UNAUTHENTICATED", "the token has expired")
    assert (await refusal_of(orchestrator.ask(token(tenant="metered")))).field == "tokens_per_minute"


async def test_with_keys_any_address_is_allowed(start, keys_file):
    orchestrator = await start("--api-keys-file", str(keys_file), "--listen", "0.0.0.0:0")
    await orchestrator.ready()


@pytest.mark.parametrize(
    "flags", [("--api-keys-file", "/nowhere"), ("--jwks-file", "/nowhere"), ("--tenant-concurrency", "3")]
)
async def test_invalid_authentication_settings_end_the_start(start, flags):
    orchestrator = await start(*flags)
    assert await orchestrator.process.wait() == 1
    log = orchestrator.log.read_text()
    assert flags[0].strip("-").replace("-", "_") in log or "jwt_issuer" in log
    assert "Traceback" not in log
