"""What an operator sees of a real stack: the trace of a request through all services, every declared metric, the log.

Real SmolLM2 as draft and target, real SGLang, real Valkey; fifty requests of all kinds, and a collector of our own.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from presift_client import Client, PresiftError

from .collector import Seen, edges

pytestmark = [pytest.mark.models, pytest.mark.timeout(1200)]

SCHEMA = yaml.safe_load((Path(__file__).parents[2] / "services/presift/telemetry/metrics.yaml").read_text())
SECRET = "xylophone"
KINDS = ("orchestrator", "target", "draft")
SENTENCE = "The " + SECRET + " of lighthouse number {} was cleaned on day {} and the log was closed. "

# What fifty good and bad requests to one replica of each cannot show, and why.
NOT_HERE = {
    "presift.log.dropped": "who reads the log must stop",
    "presift.prefill.failures": "the target must fail while the draft works",
    "presift.fallbacks": "the draft must fail",
    "presift.callers.refused": "nobody has to say who calls here",
    "presift.http.replies": "nobody comes by HTTP here",
    "presift.limits.refused": "no tenant has limits here",
    "presift.limits.trouble": "the Redis of tenants' limits must be away",
    "presift.admission.refused": "more must wait than may",
    "presift.received.refused": "many large requests must arrive at once",
    "presift.answers.ended": "many callers must not read their answers",
    "presift.memory.limit.bytes": "the machine may set no limit",
    "presift.guard.facts": "answers must have numbers or names, and four tokens may have none",
    "presift.guard.switched": "a route must be worse than any is here",
    "presift.replica.picked": "there must be several replicas",
    "presift.replica.failovers": "a replica must be lost",
    "presift.replica.migrations": "a replica must be lost amid an answer",
    "presift.replica.breaker": "a replica must fail again and again",
    "presift.replica.switches": "replicas of several kinds must be there",
    "presift.replica.hedges": "a second draft must be asked",
    "presift.draft.refused": "the orchestrator must ask for what no draft does",
    "presift.target.refused": "the orchestrator must ask for what no target does",
    "presift.target.aborted": "a caller must leave at the right moment",
}


class Asked:
    """The stack after the fifty requests, and its metrics before them."""

    def __init__(self, real: Any) -> None:
        self.stack, self.collector, self.scraped = real.stack, real.collector, real.scraped
        self.before = {kind: self.scraped(kind) for kind in KINDS}

    def total(self, kind: str, name: str, **labels: str) -> float:
        """The sum now of a metric with these labels."""
        return summed(self.scraped(kind), name, labels)

    def grown(self, kind: str, name: str, **labels: str) -> float:
        """How much that sum has grown."""
        return self.total(kind, name, **labels) - summed(self.before[kind], name, labels)


def summed(found: dict[str, Any], name: str, labels: dict[str, str]) -> float:
    return sum(value for others, value, _ in found.get(name, ()) if labels.items() <= others.items())


def prompt(seed: int, sentences: int = 18) -> str:
    return "".join(SENTENCE.format(seed * 1000 + number, number) for number in range(sentences))


@pytest.fixture(scope="module")
def asked(real_stack: Any) -> Asked:
    """After fifty mixed requests: every route, cold and again, short ones, bad ones, chats and texts."""
    real_stack.collector.forget()
    asked = Asked(real_stack)
    with Client(asked.stack.address) as client:
        for seed in range(5):
            chat = [{"role": "user", "content": [{"text": prompt(seed)}, {"text": " When?", "protected": True}]}]
            for route in ("full", "spec_pc", "spec_kv", "spec_kv_pc"):
                for _ in range(2):
                    client.generate(messages=chat, route=route, kv_lookahead="draft", max_new_tokens=4)
            client.generate(prompt(seed + 100, 2), max_new_tokens=2)
            with suppress(PresiftError):
                client.generate(token_ids=[seed + 5] * 9_000, route="full")  # over the context
        deadline = time.monotonic() + 120
        while not asked.grown("orchestrator", "presift_guard_overlap_count") and time.monotonic() < deadline:
            time.sleep(0.2)  # the guard compares when no caller waits
    return asked


ROOT = "orchestrator:OrchestratorService/Generate"
SCORING, ANSWERING, READING = "DraftService/Score", "TargetService/Generate", "TargetService/Prefill"


def own(*stages: str) -> set[tuple[str, str]]:
    return {(ROOT, f"orchestrator:{stage}") for stage in stages}


def called(parent: str, service: str, method: str, *stages: str) -> set[tuple[str, str]]:
    """A call from `parent`: both sides of it, and the stages in the service."""
    ends = {(parent, f"orchestrator:{method}"), (f"orchestrator:{method}", f"{service}:{method}")}
    return ends | {(f"{service}:{method}", f"{service}:{stage}") for stage in stages}


def of_route(route: str, cache: str):
    return lambda span: span.attributes.get("presift.route") == route and span.attributes.get("presift.cache") == cache


def within(spans: list[Seen]) -> bool:
    """Whether no span begins before the root, as the clocks of one machine have it."""
    root = next(span for span in spans if not span.parent_id)
    return all(span.start_ns >= root.start_ns - 5_000_000 for span in spans)


def test_the_trace_of_a_request_goes_through_all_services(asked: Asked) -> None:
    spans = asked.collector.trace_of(of_route("spec_pc", "miss"))
    draft = {("draft:DraftService/Score", "draft:score")}
    draft |= {("draft:score", f"draft:{stage}") for stage in ("queue", "prefill", "lookahead", "select")}
    assert edges(spans) == (
        own("protect", "tokenize", "route", "cache.get", "cache.claim", "score", "cache.put", "decode")
        | called("orchestrator:score", "draft", SCORING)
        | draft
        | called(ROOT, "target", ANSWERING, "prefill", "decode")
    )
    assert within(spans) and len({span.trace_id for span in spans}) == 1


def test_selecting_kv_has_stages_of_its_own(asked: Asked) -> None:
    spans = asked.collector.trace_of(of_route("spec_kv", "miss"))
    found = edges(spans)
    assert called(ROOT, "target", ANSWERING, "prefill", "score", "publish", "decode") <= found
    assert own("prefill") | called("orchestrator:prefill", "target", READING, "prefill") <= found
    assert called("orchestrator:score", "draft", SCORING, "score") <= found
    at = {span.name: span for span in spans if span.service == "target" and span.name in ("score", "publish", "decode")}
    assert at["score"].end_ns <= at["publish"].start_ns + 1 and at["publish"].end_ns <= at["decode"].start_ns + 1


@pytest.mark.parametrize("route", ["spec_pc", "spec_kv_pc"])
def test_a_cached_plan_points_to_the_trace_that_made_it(asked: Asked, route: str) -> None:
    hit = asked.collector.trace_of(of_route(route, "hit"))
    assert edges(hit) == (
        own("protect", "tokenize", "route", "cache.get", "decode")
        | called(ROOT, "target", ANSWERING, "prefill", "decode")
    )
    (link,) = (link for span in hit if span.name == "cache.get" for link in span.links)
    maker = next(span for span in asked.collector.spans if (span.trace_id, span.span_id) == link)
    assert maker.place == "orchestrator:score" and maker.trace_id != hit[0].trace_id
    assert of_route(route, "miss")(next(s for s in asked.collector.spans if s.span_id == maker.parent_id))


def test_prometheus_has_every_declared_metric(asked: Asked) -> None:
    missing, surplus = [], []
    known = {"target_info", *SCHEMA["process"]}
    for entry in SCHEMA["metrics"]:
        parts = [f"_{part}" for part in ("bucket", "sum", "count")] if entry["kind"] == "histogram" else [""]
        known |= {entry["prometheus"] + part for part in parts}
    for kind in KINDS:
        found = asked.scraped(kind)
        surplus += [(kind, name) for name in set(found) - known]
        for entry in SCHEMA["metrics"]:
            name = entry["prometheus"] + ("_count" if entry["kind"] == "histogram" else "")
            if (kind in entry["services"] and entry["name"] not in NOT_HERE) and name not in found:
                missing.append((kind, name))
            labels = {key.replace(".", "_") for key in entry["attributes"]}
            if any(set(told) - labels for told, _, _ in found.get(name, ())):
                surplus.append((kind, name))
    assert (missing, surplus) == ([], [])
    assert set(NOT_HERE) <= {entry["name"] for entry in SCHEMA["metrics"]}


def test_what_is_counted_adds_up(asked: Asked) -> None:
    orchestrator, target, draft = (partial(asked.grown, kind) for kind in KINDS)
    duration = "gen_ai_server_request_duration_seconds_count"
    assert orchestrator(duration) == 50
    assert orchestrator(duration, error_type="PROMPT_TOO_LONG") == 5
    assert orchestrator(duration, gen_ai_operation_name="chat") == 40
    hits, stored = (orchestrator("presift_cache_operations_total", presift_outcome=o) for o in ("hit", "stored"))
    assert hits >= 15 and stored == 15  # three routes of five documents; the guard's comparisons find theirs too
    assert draft("presift_draft_stage_duration_seconds_count", presift_stage="prefill") >= 15
    dropped = orchestrator("presift_prompt_tokens_total", presift_fate="dropped")
    assert dropped > 0 < orchestrator("presift_kv_tokens_total", presift_fate="dropped")
    assert target("presift_target_tokens_total", presift_kind="cached") > 0
    assert asked.total("target", "presift_target_kv_free") > 0
    assert asked.total("orchestrator", "presift_admission_running") == 0
    assert all(asked.total(kind, "presift_serving") == 1 for kind in KINDS)


def test_buckets_lead_to_traces(asked: Asked) -> None:
    with Client(asked.stack.address) as client:
        client.generate("Say hello.", max_new_tokens=2)
    found = asked.scraped("orchestrator")["gen_ai_server_time_to_first_token_seconds_bucket"]
    exemplars = [exemplar for _, _, exemplar in found if exemplar]
    assert exemplars
    ids = {exemplar.labels["trace_id"] for exemplar in exemplars}
    asked.collector.trace_of(lambda span: span.trace_id in ids)


def test_no_word_of_a_prompt_is_told(asked: Asked) -> None:
    told = [str((span.name, span.attributes)) for span in asked.collector.spans]
    told += [str(asked.scraped(kind)) for kind in KINDS]
    told += [service.log.read_text() for service in asked.stack.services]
    assert not any(SECRET in text for text in told)


def test_log_lines_are_json(asked: Asked) -> None:
    for service in asked.stack.services:
        lines = [line for line in service.log.read_text().splitlines() if line.startswith("{")]
        for line in lines:
            assert {"time", "level", "logger", "message", "trace_id", "span_id"} <= json.loads(line).keys()
    assert any(line.startswith("{") for line in asked.stack.services[-1].log.read_text().splitlines())
