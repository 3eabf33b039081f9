"""Web pages: which may call (CORS), and the pages that describe the API."""

import json

import pytest
from pydantic import ValidationError

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.docs import ENDPOINTS
from presift.orchestrator.config.settings import OrchestratorSettings

from ..fakes.api_keys import ACME, key_authenticator
from ..fakes.http_api import MODEL

PAGE, ELSEWHERE = "https://app.example.com", "https://elsewhere.example"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "abcde"}], "max_tokens": 5}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def settings(*flags):
    return OrchestratorSettings(_cli_parse_args=list(flags))


@pytest.fixture
async def keyed(stack, open_http_api):
    return await open_http_api(stack, authenticator=key_authenticator(), key=ACME, origins=[PAGE])


async def asks(api, origin, **headers):
    return await api.http.post("/v1/chat/completions", json=CHAT, headers={"origin": origin, **headers})


async def test_a_page_of_a_listed_origin_may_call(stack, open_http_api):
    api = await open_http_api(stack, origins=[PAGE, "http://localhost:3000"])
    for origin in (PAGE, "http://localhost:3000"):
        preflight = await api.http.options("/v1/chat/completions", headers={"origin": origin} | PREFLIGHT)
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == origin
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        answer = await asks(api, origin)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
        assert "presift-decision" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        invalid = await api.http.post("/v1/completions", json={}, headers={"origin": origin})
        assert invalid.status_code == 400 and invalid.headers["access-control-allow-origin"] == origin
    from_a_command = await api.post(CHAT)
    assert from_a_command.status_code == 200 and "access-control-allow-origin" not in from_a_command.headers


@pytest.mark.parametrize(
    "origin", [ELSEWHERE, "null", PAGE + ".evil.example", PAGE + ":8443", "http://app.example.com"]
)
async def test_other_pages_may_not(stack, open_http_api, origin):
    api = await open_http_api(stack, origins=[PAGE])
    preflight = await api.http.options("/v1/chat/completions", headers={"origin": origin} | PREFLIGHT)
    assert preflight.status_code == 400 and "access-control-allow-origin" not in preflight.headers
    answer = await asks(api, origin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert "http_origins" in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers and stack.target.calls == []
    two = await api.http.post("/v1/chat/completions", json=CHAT, headers=[("origin", PAGE), ("origin", origin)])
    assert two.status_code == 403


async def test_with_keys_a_listed_page_needs_one_too(keyed):
    refused = await asks(keyed, PAGE)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE
    answered = await asks(keyed, PAGE, authorization=f"Bearer {ACME}")
    assert answered.status_code == 200 and answered.headers["access-control-allow-origin"] == PAGE
    # The browser hides this response from its page.
    elsewhere = await asks(keyed, ELSEWHERE, authorization=f"Bearer {ACME}")
    assert elsewhere.status_code == 200 and "access-control-allow-origin" not in elsewhere.headers


async def test_by_default_there_is_no_cors(stack, open_http_api):
    api = await open_http_api(stack)
    preflight = await api.http.options("/v1/chat/completions", headers={"origin": PAGE} | PREFLIGHT)
    assert preflight.status_code == 405
    answer = await asks(api, PAGE)
    assert answer.status_code == 403 and not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("flag", "origins"),
    [
        ("", ()),
        (PAGE, (PAGE,)),
        (f"{PAGE} , http://LocalHost:3000,", (PAGE, "http://localhost:3000")),
        ("tauri://localhost", ("tauri://localhost",)),
    ],
)
def test_origins_are_a_list(flag, origins):
    assert settings("--http-origins", flag).allowed_origins() == origins


@pytest.mark.parametrize(
    "flag", ["app.example.com", f"{PAGE}/", f"{PAGE}/path", "https://*.example.com", "null", f"{PAGE},*"]
)
def test_what_no_browser_sends_is_refused_at_start(flag):
    with pytest.raises(ValidationError, match="http_origins"):
        settings("--http-origins", flag)


def test_any_origin_needs_keys():
    with pytest.raises(InvalidRequest, match=r"http_origins is .*api_keys_file"):
        settings("--http-origins", "*").allowed_origins()
    assert settings("--http-origins", "*", "--insecure").allowed_origins() == ("*",)
    assert settings("--http-origins", "*", "--api-keys-file", "keys.yaml").allowed_origins() == ("*",)


async def test_the_api_describes_itself_without_a_key(keyed):
    answer = await keyed.http.get("/openapi.json")
    document = answer.json()
    assert answer.status_code == 200 and document["openapi"] == "3.1.0"
    page = await keyed.http.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'") and "<script" not in page.text
    assert "http://" not in page.text and "https://" not in page.text
    for path in document["paths"]:
        assert path in page.text
    assert "max_prompt_tokens" in page.text and "max_completion_tokens" in page.text


async def test_every_route_is_described(stack, open_http_api):
    app = (await open_http_api(stack)).app
    routes = {(method, route.path.replace(":path", "")) for route in app.routes for method in route.methods - {"HEAD"}}
    pages = {("GET", "/docs"), ("GET", "/openapi.json")}
    assert {(each.method, each.path) for each in ENDPOINTS} == routes - pages


async def test_the_document_is_complete(stack, open_http_api):
    """Every reference has its schema, and every parameter of a body is there with what is refused."""
    document = (await (await open_http_api(stack)).http.get("/openapi.json")).json()
    schemas, text = document["components"]["schemas"], json.dumps(document)
    referred = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert referred <= schemas.keys()
    chat = schemas["ChatBody"]
    assert {"model", "messages", "presift", "user", "stream"} <= chat["properties"].keys()
    assert chat["required"] == ["messages"]
    assert {"type": "string"} in schemas["Message"]["properties"]["content"]["anyOf"]
    assert "auto" in schemas["PresiftOptions"]["properties"]["route"]["enum"]
    assert schemas["BudgetOptions"]["properties"]["max_kv_tokens"]["anyOf"][0]["minimum"] == 0
    create = document["paths"]["/v1/chat/completions"]["post"]
    assert create["security"] == [{"key": []}, {}] and "text/event-stream" in create["responses"]["200"]["content"]
    assert document["paths"]["/health"]["get"]["security"] == []


async def test_the_pages_can_be_turned_off(stack, open_http_api):
    api = await open_http_api(stack, has_docs=False)
    assert (await api.http.get("/docs")).status_code == (await api.http.get("/openapi.json")).status_code == 404
    assert settings("--no-http-docs").http_docs is False and settings().http_docs is True
