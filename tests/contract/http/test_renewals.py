"""What the target reports about renewals reaches the callers of every HTTP API, whole and in a stream."""

import json

import pytest

from ..fakes.http_api import MODEL
from ..fakes.stack import ALL_ROUTES

REPORTED = {
    "renewals": 3,
    "renewals_skipped": 2,
    "accepted_tokens": 1,
    "kv_tokens_peak": 70,
    "kv_tokens_mean": 55.5,
    "coverage_min": 0.25,
}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 200}]}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": "x" * 200},
    "/v1/responses": {"model": MODEL, "input": "x" * 200},
    "/v1/messages": CHAT | {"max_tokens": 5},
}


@pytest.fixture
async def api(open_stack, open_http_api):
    stack = await open_stack(routes=ALL_ROUTES)

    def report(usage):
        for name, value in REPORTED.items():
            setattr(usage, name, value)

    stack.target.spoil = report
    return await open_http_api(stack)


async def last_presift(api, path, body):
    """The last `presift` object of a reply, which has the usage."""
    answer = await api.http.post(path, json=body, headers={"anthropic-version": "2023-06-01"})
    assert answer.status_code == 200, answer.text
    if not body["stream"]:
        return answer.json()["presift"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    objects = [event.get("presift") or event.get("response", {}).get("presift") for event in events]
    return [each for each in objects if each][-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_renewals_reach_the_caller(api, path, stream):
    body = BODIES[path] | {"stream": stream, "presift": {"route": "spec_kv"}}
    usage = (await last_presift(api, path, body))["usage"]
    assert {name: usage.get(name) for name in REPORTED} == REPORTED


async def test_without_renewals_the_counts_are_zero(api):
    api.stack.target.spoil = lambda usage: None
    body = CHAT | {"stream": False, "presift": {"route": "spec_kv"}}
    usage = (await last_presift(api, "/v1/chat/completions", body))["usage"]
    assert {name: usage[name] for name in REPORTED if name in usage} == dict.fromkeys(list(REPORTED)[:-1], 0)
