"""Base URLs with and without /v1, doubled and trailing slashes: clients write them, and all reach the endpoint."""

import openai
import pytest

from presift.orchestrator.api.http.paths import MAX_CHARACTERS, UNSUPPORTED, canonical_path

from ..fakes.http_api import MODEL

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "abcde"}], "max_tokens": 5}
NAMES = {"chat", "completions", "models"}


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat///completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/models/", "/v1/models"),
        ("/v1/models/org/name", "/v1/models/org/name"),
        ("/models/v1/x", "/v1/models/v1/x"),
        ("/health/", "/health"),
        ("//docs", "/docs"),
        ("/v1/health", "/v1/health"),
        ("/v2/chat/completions", "/v2/chat/completions"),
        ("/", "/"),
        ("", "/"),
        ("/v1", "/v1"),
        ("/" * MAX_CHARACTERS + "health", "/" * MAX_CHARACTERS + "health"),
    ],
)
def test_a_path_has_one_form(path, canonical):
    assert canonical_path(path, NAMES) == canonical
    assert canonical_path(canonical, NAMES) == canonical


@pytest.fixture
async def api(stack, open_http_api):
    return await open_http_api(stack)


PATHS = [
    *("/v1/chat/completions", "/chat/completions", "//v1/chat/completions", "/v1/chat/completions/"),
    *("/v1/v1/chat/completions", "/v1//chat//completions//"),
]


async def test_every_form_reaches_the_endpoint_and_is_counted_as_one_route(api, telemetry):
    before = telemetry.total("presift.http.replies", http_route="/v1/chat/completions", status="200")
    for path in PATHS:
        answer = await api.http.post(f"{api.url}{path}", json=CHAT)
        assert answer.status_code == 200 and answer.history == [], path
    counted = telemetry.total("presift.http.replies", http_route="/v1/chat/completions", status="200")
    assert counted == before + len(PATHS)
    assert {span.name for span in telemetry.spans if span.name.startswith("POST ")} == {"POST /v1/chat/completions"}
    assert (await api.http.get("/health/")).status_code == (await api.http.get("/models/")).status_code == 200


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/", "//v1", "/v1/v1"])
async def test_openais_client_with_any_base_url(api, base):
    client = openai.AsyncOpenAI(base_url=f"{api.url}{base}", api_key="none", max_retries=0)
    async with client:
        answer = await client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content
        assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_no_name_of_a_missing_endpoint_hides_one_that_is_there(api):
    served = {route.path.split("/")[2] for route in api.app.routes if route.path.startswith("/v1/")}
    assert not served & UNSUPPORTED.keys()
