"""spec_kv with no draft service: a tiny random model on SGLang, and an orchestrator whose draft is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from presift.cli.stack.process import ServiceProcess
from presift_client import Client, Generation

from .ports import free_ports

pytestmark = pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")

START_S = 300
CAPACITY, FIRST = 64, 16
SMALL = ("--dtype", "float32", "--kv-pool-tokens", "6000", "--context-tokens", "1024")


def prompt(seed: int, tokens: int = 300) -> list[int]:
    return np.random.default_rng(seed).integers(1, 250, tokens).tolist()


@pytest.fixture(scope="module")
def client(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    logs, model = tmp_path_factory.mktemp("logs"), str(tiny_model("tinyq"))
    nobody = free_ports(1)
    target = ServiceProcess(
        "target",
        "presift.target",
        ["--model", model, "--listen", "127.0.0.1:0", *SMALL],
        logs / "target.log",
        {},
    )
    flags = ["--listen", "127.0.0.1:0", "--draft-address", f"127.0.0.1:{nobody}"]
    flags += ["--compress-above-tokens", "0", "--kv-capacity", str(CAPACITY), "--kv-lookahead", "target"]
    flags += ["--no-calibrate", "--guard-share", "0"]
    orchestrator = None
    try:
        address = target.wait_ready(START_S)
        flags += ["--target-address", address]
        orchestrator = ServiceProcess("orchestrator", "presift.orchestrator", flags, logs / "orchestrator.log", {})
        with Client(orchestrator.wait_ready(START_S)) as connected:
            yield connected
    finally:
        for service in (orchestrator, target):
            if service is not None:
                service.stop(60)


def ask(client: Client, ids: list[int], route: str, tokens: int, **options: Any) -> Generation:
    sampling = {"max_new_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    return client.generate(token_ids=ids, route=route, deadline_s=100, **sampling, **options)


def test_answers_that_fit_the_first_tokens_are_those_of_full(client: Client) -> None:
    assert client.info().draft is None
    for seed in range(6):
        full, dropping = (ask(client, prompt(seed), route, FIRST - seed) for route in ("full", "spec_kv"))
        decision, usage = dropping.decision, dropping.usage
        assert (decision.route, decision.reason, decision.kv_lookahead) == ("spec_kv", "requested", "target")
        assert (decision.draft, decision.cache, decision.draft_ms) == (None, "not_used", 0.0)
        assert dropping.token_ids == full.token_ids and usage.kv_tokens == decision.prompt_tokens


def test_longer_answers_begin_like_full_and_drop_kv(client: Client) -> None:
    ids = prompt(7, 600)
    full = ask(client, ids, "full", 60)
    once = ask(client, ids, "spec_kv", 60, renew_every=0)
    renewed = ask(client, ids, "spec_kv", 60, renew_every=12, renew_window=16)
    for dropping in (once, renewed):
        assert dropping.token_ids[:FIRST] == full.token_ids[:FIRST]
        assert dropping.usage.kv_tokens == CAPACITY + 1 == dropping.decision.kv_tokens
    # After twelve tokens, or after four that mention something new of the prompt.
    assert once.usage.renewals == 1 and 2 <= renewed.usage.renewals <= 11
    assert (renewed.decision.renew_every, renewed.decision.renew_window) == (12, 16)


def test_auto_drops_kv_within_a_limit_and_other_routes_are_answered_in_full(client: Client) -> None:
    limited = ask(client, prompt(8), "auto", 20, max_kv_tokens=CAPACITY + 1)
    assert (limited.decision.route, limited.decision.reason) == ("spec_kv", "over_budget")
    for route in ("spec_pc", "spec_kv_pc"):
        answer = ask(client, prompt(9), route, 4, max_prompt_tokens=100)
        assert (answer.decision.route, answer.decision.reason) == ("full", "draft_unavailable")


def test_a_later_turn_finds_nothing_to_continue(client: Client) -> None:
    first = ask(client, prompt(10), "spec_kv", 20)
    later = [*prompt(10), *first.token_ids, 7]
    answer = ask(client, later, "spec_kv", 4, continue_prompt_tokens=first.decision.prompt_tokens)
    assert not answer.decision.continued and "not continued" in answer.decision.detail
