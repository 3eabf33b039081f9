"""Where the time goes: stages, queues, predictions and real times."""

from __future__ import annotations

from collections.abc import Iterator

from panels import (
    GREEN,
    NUMBER,
    PER_SECOND,
    RED,
    SECONDS,
    TIMES,
    YELLOW,
    Panel,
    Query,
    lines,
    number,
)

TITLE = "presift: where the time goes"
ABOUT = "The stages of a request in every service, the queues, and predictions compared with real times."

_RATE = "[$__rate_interval]"
_RANGE = "[$__range]"
_STAGES = {role: f"presift_{role}_stage_duration_seconds" for role in ("orchestrator", "draft", "target")}
_WAIT = "presift_admission_wait_seconds_bucket"
_RATIO = "presift_forecast_ratio_bucket"


def rows() -> Iterator[tuple[str, list[Panel]]]:
    yield "In the time shown", _totals()
    yield "Stages: mean seconds, stacked", _stages()
    yield "Queues", _queues()
    yield "Predicted and real times", _forecasts()
    yield "Answers, replicas", _answers()


def _quantile(share: float, bucket: str, span: str, by: str = "le") -> str:
    return f"histogram_quantile({share}, sum by ({by}) (rate({bucket}{span})))"


def _of(metric: str, role: str = "orchestrator") -> str:
    return f'gen_ai_server_{metric}_seconds_bucket{{job="presift-{role}"}}'


def _totals() -> list[Panel]:
    scoring = f"sum(rate({_STAGES['draft']}_sum{_RANGE})) / max(sum by (presift_stage) (rate({_STAGES['draft']}_count{_RANGE})))"
    return [
        number("First token, p50", "At the orchestrator: from arrival to the first token.", SECONDS,
               Query(_quantile(0.5, _of("time_to_first_token"), _RANGE))),
        number("of it in the target, p50", "From arrival at the target to its first token.", SECONDS,
               Query(_quantile(0.5, _of("time_to_first_token", "target"), _RANGE))),
        number("Scoring, mean", "All stages of the draft for one prompt, including its queue.", SECONDS, Query(scoring)),
        number("Admission wait, p95", "Time in the orchestrator's queue.", SECONDS,
               Query(_quantile(0.95, _WAIT, _RANGE)), base=GREEN, worry=((1, YELLOW), (5, RED))),
        number("Real / predicted", "Median time to first token over its prediction. AUTO chooses best if this is near 1.", TIMES,
               Query(_quantile(0.5, _RATIO, _RANGE)), base=RED, worry=((0.5, GREEN), (1.5, YELLOW), (2, RED)), decimals=2),
        number("Whole answer, p95", "From arrival to the last token.", SECONDS,
               Query(_quantile(0.95, _of("request_duration"), _RANGE))),
    ]  # fmt: skip


def _stage_means(role: str) -> Query:
    """Seconds of each stage, averaged over all requests, even those that skip it: the stack is the time of a request."""
    name = _STAGES[role]
    whole = f"scalar(max(sum by (presift_stage) (rate({name}_count{_RATE}))))"
    return Query(f"sum by (presift_stage) (rate({name}_sum{_RATE})) / {whole}", "{{presift_stage}}")


def _stages() -> list[Panel]:
    return [
        lines("Orchestrator", "In the order of a request: tokenize, protect, route, cache.*, score (the draft), prefill, first_token "
              "(the target), decode. Early prefill overlaps with score.", SECONDS, _stage_means("orchestrator"), stacked=True),
        lines("Draft", "queue, then prefill (reading), lookahead (guessing the answer), select (the mask).", SECONDS,
              _stage_means("draft"), stacked=True),
        lines("Target", "prefill; score and publish if KV is dropped; decode.", SECONDS, _stage_means("target"), stacked=True),
    ]  # fmt: skip


def _queues() -> list[Panel]:
    return [
        lines("Waiting at the orchestrator", "Time in its queue. Alert above 5 s (p95).", SECONDS,
              Query(_quantile(0.5, _WAIT, _RATE), "p50"), Query(_quantile(0.95, _WAIT, _RATE), "p95")),
        lines("Draft queues", "Queued prompts as a share of the limit. Alert above 80 % (red line).", "percentunit",
              Query("presift:draft_queue:ratio", "{{instance}}"), most=1.0, line_at=0.8),
        lines("Waiting requests", "In the queues of orchestrators and drafts, and inside the targets' engines.", NUMBER,
              Query("sum(presift_admission_waiting)", "orchestrators"), Query("sum(presift_draft_queue)", "drafts"),
              Query("sum(presift_target_waiting)", "targets")),
    ]  # fmt: skip


def _forecasts() -> list[Panel]:
    return [
        lines("Real / predicted first token", "All routes; 1 is exact, 2 is twice the predicted time. Alert above 2 or below 0.5.", TIMES,
              *(Query(_quantile(share, _RATIO, _RATE), name) for share, name in ((0.1, "p10"), (0.5, "p50"), (0.9, "p90"))),
              line_at=2.0),
        lines("Real / predicted, by route (p50)", "If a route is always wrong, its speeds were learned under another load.", TIMES,
              Query(_quantile(0.5, _RATIO, _RATE, "le, presift_route"), "{{presift_route}}"), line_at=2.0),
        lines("First token, p95 by route", "What callers see. Points are requests and link to their traces.", SECONDS,
              Query(_quantile(0.95, _of("time_to_first_token"), _RATE, "le, presift_route"), "{{presift_route}}")),
    ]  # fmt: skip


def _answers() -> list[Panel]:
    return [
        lines("Whole answers, by route (p50)", "From arrival to the last token.", SECONDS,
              Query(_quantile(0.5, _of("request_duration"), _RATE, "le, presift_route"), "{{presift_route}}")),
        lines("Time per output token, by route (p50)", "Less KV makes each step cheaper: spec_kv should be below full.", SECONDS,
              Query(_quantile(0.5, _of("time_per_output_token"), _RATE, "le, presift_route"), "{{presift_route}}")),
        lines("Replicas chosen", "Targets by affinity (their cache) or forecast; drafts by least load; failover: another one failed.",
              PER_SECOND, Query(f"sum by (presift_role, presift_by) (rate(presift_replica_picked_total{_RATE}))",
                                "{{presift_role}}: {{presift_by}}"),
              Query("vector(0)", "none"), stacked=True, soft_most=0.1),
        lines("Failures of replicas", "Failovers, continued answers, changes of the kind of replica that is used and of circuit breakers, hedged calls to drafts, and answers that targets did "
              "not finish: disconnected clients, deadlines, interrupted comparisons of the guard, errors.",
              PER_SECOND,
              Query(f"sum by (presift_role) (rate(presift_replica_failovers_total{_RATE}))", "failover: {{presift_role}}"),
              Query(f"sum(rate(presift_replica_migrations_total{_RATE}))", "answers continued by another target"),
              Query(f"sum by (presift_role) (rate(presift_replica_switches_total{_RATE}))", "another kind used: {{presift_role}}"),
              Query(f"sum by (presift_role, presift_to) (rate(presift_replica_breaker_total{_RATE}))",
                    "breaker: {{presift_role}} {{presift_to}}"),
              Query(f"sum by (presift_outcome) (rate(presift_replica_hedges_total{_RATE}))", "hedge {{presift_outcome}}"),
              Query(f"sum(rate(presift_target_aborted_total{_RATE})) or vector(0)", "unfinished in a target"), width=24, height=6, soft_most=0.1),
    ]  # fmt: skip
