"""Callers over HTTP: the same keys, tenants and limits as over gRPC, and TLS certificates."""

import asyncio
import ssl

import httpx
import openai
import pytest

from presift.core.errors import InvalidRequest, PresiftError
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.api.http.server import HttpOptions, HttpServer
from presift.orchestrator.domain.caller import TenantLimits
from presift.rpc.security.certificates import TlsFiles, server_context

from ..fakes.api_keys import ACME, ACME_TOO, OTHER, bearer, key_authenticator
from ..fakes.authority import NAMES, Authority
from ..fakes.http_api import MODEL
from ..fakes.services import hangs
from ..fakes.stack import refusal_of, request

PROMPT = list(range(100, 200))
ASKED = {"model": MODEL, "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
HOST = "127.0.0.1"
SALT = "deployment"
TURN = {"role": "user", "content": "abc"}


@pytest.fixture
async def keyed(open_stack, open_http_api):
    """A stack whose two APIs accept the same keys."""
    keeper = key_authenticator(limits={"other": TenantLimits(tokens_per_minute=120, concurrency=1)})
    stack = await open_stack(auth_interceptors=(AuthInterceptor(keeper),), salt=SALT)
    return await open_http_api(stack, authenticator=keeper, key=ACME, salt=SALT)


BAD = {
    "nothing": {},
    "an unknown key": {"authorization": "Bearer psk_unknown"},
    "a key without its scheme": {"authorization": ACME},
    "another scheme": {"authorization": f"Basic {ACME}"},
    "an empty key": {"authorization": "Bearer"},
    "a tenant alone": {"presift-tenant": "acme"},
    "a key of another header": {"api-key": ACME},
    "an unknown key as Anthropic's clients send it": {"x-api-key": "psk_unknown"},
    "a right key beside a wrong one": {"authorization": "Bearer psk_unknown", "x-api-key": ACME},
}


async def test_a_key_as_anthropics_clients_send_it(keyed):
    for path in ("/v1/completions", "/v1/messages"):
        body = ASKED if path == "/v1/completions" else {"model": MODEL, "max_tokens": 2, "messages": [TURN]}
        answer = await keyed.http.post(path, json=body, headers={"x-api-key": ACME})
        assert answer.status_code == 200, answer.text
    refused = await keyed.http.post("/v1/messages", json={}, headers={"x-api-key": "psk_unknown"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD)
async def test_without_a_valid_credential_nothing_is_reached(keyed, headers, telemetry):
    before = telemetry.total("presift.callers.refused", why="credential")
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = await keyed.http.post(path, content=b"not even read", headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key" and ACME[4:] not in answer.text
    for path in ("/v1/models", "/v1/models/target"):
        assert (await keyed.http.get(path, headers=headers)).status_code == 401
    assert keyed.stack.target.calls == keyed.stack.draft.calls == []
    assert telemetry.total("presift.callers.refused", why="credential") == before + 4
    assert (await keyed.http.get("/health")).status_code == 200


async def test_a_tenant_holds_a_share_of_the_calls(keyed):
    calls, ended = keyed.stack.server.calls, asyncio.Event()

    async def hold():
        calls.enter("acme")
        await ended.wait()

    held = [asyncio.create_task(hold()) for _ in range(8)]
    calls._tenants._limit = 8
    await asyncio.sleep(0)
    refused = await keyed.http.post("/v1/completions", json=ASKED, headers=dict(bearer(ACME)))
    assert (refused.status_code, refused.json()["error"]["presift"]["field"]) == (429, "calls of the tenant")
    assert (await keyed.http.post("/v1/completions", json=ASKED, headers=dict(bearer(OTHER)))).status_code == 200
    ended.set()
    await asyncio.gather(*held)


async def test_two_keys_are_rejected(keyed):
    headers = [("authorization", f"Bearer {ACME}"), ("authorization", f"Bearer {OTHER}")]
    assert (await keyed.http.get("/v1/models", headers=headers)).status_code == 401


async def test_openais_client_sends_its_key(keyed):
    assert (await keyed.client.completions.create(**ASKED)).usage.prompt_tokens == len(PROMPT)
    with pytest.raises(openai.AuthenticationError):
        await keyed.client_of("psk_unknown").completions.create(**ASKED)


async def test_another_tenants_name_is_denied(keyed):
    client = keyed.client_of(ACME, default_headers={"presift-tenant": "other"})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await client.completions.create(**ASKED)
    assert refused.value.code == "permission_denied" and keyed.stack.target.calls == []
    own = keyed.client_of(ACME, default_headers={"presift-tenant": "acme"})
    await own.completions.create(**ASKED)


async def test_a_tenant_has_one_namespace_over_both_apis(keyed):
    await keyed.client.completions.create(**ASKED, extra_body={"presift": {"route": "spec_pc"}})
    await keyed.client_of(OTHER).completions.create(**ASKED, extra_body={"presift": {"route": "spec_pc"}})
    async for _ in keyed.stack.stub.Generate(request(PROMPT), metadata=bearer(ACME_TOO)):
        pass
    acme, other, acme_too = (call.cache_salt for call in keyed.stack.target.calls)
    assert acme == acme_too != other and SALT not in (acme, other)
    assert len(keyed.stack.draft.calls) == 2


async def test_the_other_apis_have_the_same_namespace(keyed):
    """Also the same tokens, so that what one API has cached the others find."""
    bodies = {
        "chat/completions": {"messages": [TURN], "max_tokens": 2},
        "messages": {"messages": [TURN], "max_tokens": 2},
        "responses": {"input": [TURN], "max_output_tokens": 2},
    }
    for path, body in bodies.items():
        headers = {"authorization": f"Bearer {ACME}"}
        answer = await keyed.http.post(f"/v1/{path}", json={"model": MODEL} | body, headers=headers)
        assert answer.status_code == 200, answer.text
    calls = keyed.stack.target.calls
    assert len(calls) == 3 and len({(call.cache_salt, tuple(call.token_ids)) for call in calls}) == 1


async def test_concurrent_callers_do_not_mix(keyed):
    async def salt_of(number, key):
        prompt = [number, *PROMPT[:20]]
        await keyed.client_of(key).completions.create(**ASKED | {"prompt": prompt})
        return next(call.cache_salt for call in keyed.stack.target.calls if list(call.token_ids) == prompt)

    keys = [ACME, ACME_TOO] * 10
    assert len(set(await asyncio.gather(*(salt_of(number, key) for number, key in enumerate(keys))))) == 1


async def test_the_tenants_limits_count_both_apis_together(keyed):
    other = keyed.client_of(OTHER)
    await other.completions.create(**ASKED)  # 105 of 120 tokens
    with pytest.raises(openai.RateLimitError) as refused:
        await other.completions.create(**ASKED)
    assert refused.value.body["presift"]["field"] == "tokens_per_minute"
    assert int(refused.value.response.headers["retry-after"]) >= 1
    over_grpc = await refusal_of(keyed.stack.stub.Generate(request(PROMPT), metadata=bearer(OTHER)).read())
    assert over_grpc.field == "tokens_per_minute"
    await keyed.client.completions.create(**ASKED)


async def test_concurrency_is_limited(keyed):
    keyed.stack.target.faults.append(hangs)
    first = asyncio.create_task(keyed.client_of(OTHER).completions.create(**ASKED | {"prompt": [1, 2]}))
    await keyed.stack.settle(lambda: keyed.stack.target.running == 1)
    with pytest.raises(openai.RateLimitError) as refused:
        await keyed.client_of(OTHER).completions.create(**ASKED | {"prompt": [1, 2]})
    assert refused.value.body["presift"]["field"] == "concurrency"
    # The limits are released before a caller sees the end: sequential requests never exceed them.
    first.cancel()
    await keyed.stack.settle(lambda: keyed.stack.target.running == 0)
    await keyed.stack.settle(lambda: keyed.stack.server.calls.running == 0)
    for number in range(10):
        stream = await keyed.client_of(OTHER).completions.create(
            **ASKED | {"prompt": [1], "max_tokens": 1}, stream=True
        )
        assert len([chunk async for chunk in stream]) in (1, 2), number


async def test_without_keys_a_tenants_name_selects_defaults_alone(stack, open_http_api):
    plain = await open_http_api(stack)
    await plain.client_of("anything", default_headers={"presift-tenant": "acme"}).completions.create(**ASKED)
    assert stack.target.calls[0].cache_salt == ""
    for name, status in (("a b", 400), ("x" * 65, 400)):
        answer = await plain.post(ASKED, "/v1/completions", presift_tenant=name)
        assert answer.status_code == status and answer.json()["error"]["param"] == "presift-tenant"


async def test_a_page_needs_a_key(stack, keyed, open_http_api):
    """A page that the owner of this machine has opened could call an API without authentication."""
    plain, page = await open_http_api(stack), {"origin": "http://127.0.0.1:8000"}
    answer = await plain.http.post("/v1/completions", json=ASKED, headers=page)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert stack.target.calls == []
    shown = page | {"authorization": f"Bearer {ACME}"}
    assert (await keyed.http.post("/v1/completions", json=ASKED, headers=shown)).status_code == 200


async def test_explain_can_be_disabled(stack, open_http_api):
    closed = await open_http_api(stack, explains=False)
    with pytest.raises(openai.PermissionDeniedError):
        await closed.client.completions.create(**ASKED, extra_body={"presift": {"explain": True}})


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.com:0"])
async def test_beyond_this_machine_callers_must_authenticate(listen):
    with pytest.raises(InvalidRequest, match="open to unauthenticated callers"):
        HttpServer(None, HttpOptions(listen))
    for known in ({"knows_callers": True}, {"insecure": True}):
        HttpServer(None, HttpOptions(listen, **known))


async def test_a_port_in_use_is_reported(stack, open_http_api):
    taken = (await open_http_api(stack)).address
    with pytest.raises(PresiftError, match=f"cannot listen on {taken} .http_listen."):
        await HttpServer(None, HttpOptions(taken)).start()


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ours")


def context_of(pair, *, shows_certificate=True):
    context = ssl.create_default_context(cafile=pair.ca)
    if shows_certificate:
        context.load_cert_chain(pair.cert, pair.key)
    return context


async def asked_by(api, context):
    async with httpx.AsyncClient(base_url=api.url, verify=context) as http:
        return await http.post("/v1/completions", json=ASKED)


async def test_tls(stack, open_http_api, authority):
    pair = authority.pair(HOST)
    secure = await open_http_api(stack, tls=TlsFiles(pair.cert, pair.key, None, NAMES))
    assert secure.url.startswith("https://")
    answer = await asked_by(secure, context_of(pair, shows_certificate=False))
    assert answer.status_code == 200
    with pytest.raises(httpx.HTTPError):
        await asked_by(secure, ssl.create_default_context())
    with pytest.raises(httpx.HTTPError):
        async with httpx.AsyncClient() as http:
            await http.get(secure.url.replace("https", "http"))
    old = context_of(pair, shows_certificate=False)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await asked_by(secure, old)).status_code == 200


async def test_mutual_tls(stack, open_http_api, authority, tmp_path):
    served, caller, stranger = authority.pair(HOST), authority.pair("me"), Authority(tmp_path / "theirs").pair("me")
    secure = await open_http_api(stack, tls=served.files())
    assert (await asked_by(secure, context_of(caller))).status_code == 200
    theirs = ssl.create_default_context(cafile=served.ca)
    theirs.load_cert_chain(stranger.cert, stranger.key)
    for context in (context_of(caller, shows_certificate=False), theirs):
        with pytest.raises(httpx.HTTPError):
            await asked_by(secure, context)
    assert len(stack.target.calls) == 1


async def test_new_certificates_are_used_without_a_restart(stack, open_http_api, authority, tmp_path):
    served, caller = authority.pair(HOST, into="served"), authority.pair("me")
    secure = await open_http_api(stack, tls=served.files())

    async def serial():
        host, _, port = secure.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context_of(caller))
        shown = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return shown

    before = await serial()
    assert before == await serial()
    authority.pair(HOST, into="served")
    assert before != await serial()
    # The authority of callers has changed: earlier certificates are rejected, resumed sessions too.
    context = context_of(caller)
    assert (await asked_by(secure, context)).status_code == 200
    served.ca.write_bytes((Authority(tmp_path / "new").ca).read_bytes())
    with pytest.raises(httpx.HTTPError):
        await asked_by(secure, context)
    served.key.write_text("half a renewal")
    with pytest.raises(PresiftError):
        server_context(served.files())
