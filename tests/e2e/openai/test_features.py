"""Every feature of the OpenAI API on every route, with a prompt that the route really shortens."""

from __future__ import annotations

from typing import Any

import pytest

from .features import BUDGETS, FEATURES, ROUTES, Feature, with_document
from .requests import REQUESTS

pytestmark = [pytest.mark.models, pytest.mark.processes]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
@pytest.mark.parametrize("route", ["sglang", *ROUTES])
def test_the_table_is_true(feature: Feature, route: str, sglang: str, presift: str, ask: Any) -> None:
    path, body = REQUESTS[feature.request]
    if route == "sglang":
        reply = ask(sglang, path, with_document(body))
        assert reply.status_code == 200, reply.text
        assert feature.has(reply.json())
        return
    options = {"route": route, "budget": BUDGETS[route] | {"compress_above_tokens": 0}}
    reply = ask(presift, path, with_document(body) | {"presift": options})
    if route in feature.refused:
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"]
        return
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert feature.has(answer), answer
    decision = answer["presift"]["decision"]
    assert decision["route"] == route, decision
    if route in ("spec_pc", "spec_kv_pc"):
        assert decision["kept_tokens"] < decision["prompt_tokens"] / 2
    if route in ("spec_kv", "spec_kv_pc"):
        assert decision["kv_tokens"] < decision["prompt_tokens"] / 2
