"""Is it serving: instances, requests, failures, queues."""

from __future__ import annotations

from collections.abc import Iterator

from panels import (
    BYTES,
    GREEN,
    NUMBER,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    YELLOW,
    Panel,
    Query,
    lines,
    number,
)

TITLE = "presift: is it serving"
ABOUT = "Instances, requests, failures and queues. Start here."

_REQUESTS = 'gen_ai_server_request_duration_seconds_count{job="presift-orchestrator"}'
_FAILED = 'gen_ai_server_request_duration_seconds_count{job="presift-orchestrator", error_type!=""}'
_TTFT = 'gen_ai_server_time_to_first_token_seconds_bucket{job="presift-orchestrator"}'
_TPOT = 'gen_ai_server_time_per_output_token_seconds_bucket{job="presift-orchestrator"}'
_RATE = "[$__rate_interval]"


def rows() -> Iterator[tuple[str, list[Panel]]]:
    yield "Now", _now()
    yield "Requests", _requests()
    yield "Room", _room()
    yield "Admission", _door()
    yield "Processes", _processes()


def _now() -> list[Panel]:
    serving = 'sum by (role) (label_replace(presift_serving, "role", "$1", "job", "presift-(.+)"))'
    none = " or ".join(
        f'label_replace(vector(0), "role", "{role}", "", "")' for role in ("orchestrator", "draft", "target")
    )
    return [
        number("Serving", "Instances whose health is SERVING. Red: a role has none.", NUMBER,
               Query(f"{serving} or {none}", "{{role}}"), width=8,
               worry=((1, GREEN),), base=RED, sparkline=False),
        number("Alerts", "presift's firing alerts; Prometheus' page Alerts has their names.", NUMBER,
               Query('count(ALERTS{alertname=~"Presift.+", alertstate="firing"}) or vector(0)'),
               worry=((1, RED),), base=GREEN),
        number("Requests", "Finished requests, including failed ones.", PER_SECOND, Query(f"sum(rate({_REQUESTS}{_RATE}))")),
        number("Failing", "Share of requests that end in an error that is not the caller's fault, without deadlines. Pages above 5 %.", SHARE,
               Query("presift:request_errors:ratio_rate5m"), worry=((0.01, YELLOW), (0.05, RED)), base=GREEN, decimals=1),
        number("First token, p95", "95 % of first tokens are faster, over all routes.", SECONDS,
               Query(f"histogram_quantile(0.95, sum by (le) (rate({_TTFT}{_RATE})))")),
    ]  # fmt: skip


def _requests() -> list[Panel]:
    return [
        lines("Decisions by route", "Requests by the route that was chosen.", PER_SECOND,
              Query(f"sum by (presift_route) (rate(presift_requests_total{_RATE}))", "{{presift_route}}"), stacked=True),
        lines("Ended in an error", "By reason; CANCELLED: the client disconnected. OVERLOADED: add targets or raise max_running. "
              "DEADLINE_EXCEEDED: ticket above 5 %, page above 50 %.",
              PER_SECOND, Query(f"sum(rate({_FAILED}{_RATE})) or vector(0)", "all"),
              Query(f"sum by (error_type) (rate({_FAILED}{_RATE}))", "{{error_type}}"), soft_most=0.1),
        lines("Time to first token", "From a request's arrival at the orchestrator to its first token. Points are requests and link to "
              "their traces.", SECONDS,
              Query(f"histogram_quantile(0.5, sum by (le) (rate({_TTFT}{_RATE})))", "p50"),
              Query(f"histogram_quantile(0.95, sum by (le) (rate({_TTFT}{_RATE})))", "p95")),
        lines("Time per output token", "Mean time between tokens, after the first one.", SECONDS,
              Query(f"histogram_quantile(0.5, sum by (le) (rate({_TPOT}{_RATE})))", "p50"),
              Query(f"histogram_quantile(0.95, sum by (le) (rate({_TPOT}{_RATE})))", "p95")),
        lines("Tokens of callers", "Prompt tokens and generated tokens.", "si:tok/s",
              Query(f"sum by (gen_ai_token_type) (rate(gen_ai_client_token_usage_sum{_RATE}))", "{{gen_ai_token_type}}")),
        lines("Running calls", "gRPC calls in every service, without health checks.", NUMBER,
              Query("sum by (job) (presift_calls_running)", "{{job}}")),
    ]  # fmt: skip


def _room() -> list[Panel]:
    held = "sum by (instance) (presift_target_kv_held)"
    return [
        lines("Orchestrators: running, waiting", "Running requests (up to max_running each) and queued ones.",
              NUMBER, Query("sum(presift_admission_running)", "running"), Query("sum(presift_admission_waiting)", "waiting")),
        lines("Targets: running, waiting", "Requests inside SGLang: being generated, and waiting for KV or a slot.", NUMBER,
              Query("sum(presift_target_running)", "running"), Query("sum(presift_target_waiting)", "waiting")),
        lines("Targets: KV in use", "Share of KV slots that running requests hold. Alert above 95 % (red line).", SHARE,
              Query("presift:target_kv_held:ratio", "{{instance}}"), most=1.0, line_at=0.95),
        lines("Targets: KV slots", "Slots that running requests hold, and free ones, including the prefix cache.", NUMBER,
              Query(held.replace("by (instance) ", ""), "held"), Query("sum(presift_target_kv_free)", "free"), stacked=True),
        lines("Drafts: scoring, waiting", "Prompts being scored and waiting; red: the queue limit, over all drafts.", NUMBER,
              Query("sum(presift_draft_running)", "scoring"), Query("sum(presift_draft_queue)", "waiting"),
              Query("sum(presift_draft_queue_limit)", "may wait")),
        lines("Replicas", "As the orchestrators see them; unusable ones get no calls (`presift models` shows the reason).", NUMBER,
              Query("max by (presift_role, presift_state) (presift_replicas)", "{{presift_role}} {{presift_state}}"), steps=True),
    ]  # fmt: skip


def _door() -> list[Panel]:
    return [
        lines("Refused", "By reason: full queue, the memory of requests and unread answers, a tenant's limit, unauthenticated callers, "
              "a full draft or target.", PER_SECOND,
              Query(f"sum by (presift_field) (rate(presift_admission_refused_total{_RATE}))", "overload: {{presift_field}}"),
              Query(f"sum by (presift_field) (rate(presift_received_refused_total{_RATE}))", "on the way: {{presift_field}}"),
              Query(f"sum(rate(presift_answers_ended_total{_RATE}))", "unread answers ended"),
              Query(f"sum by (presift_limit) (rate(presift_limits_refused_total{_RATE}))", "limit: {{presift_limit}}"),
              Query(f"sum by (presift_why) (rate(presift_callers_refused_total{_RATE}))", "caller: {{presift_why}}"),
              Query(f'sum by (http_response_status_code) (rate(presift_http_replies_total{{http_response_status_code=~"[45].."}}{_RATE}))', "HTTP {{http_response_status_code}}"),
              Query(f"sum by (presift_reason) (rate(presift_draft_refused_total{_RATE}))", "draft: {{presift_reason}}"),
              Query(f"sum by (presift_reason) (rate(presift_target_refused_total{_RATE}))", "target: {{presift_reason}}"),
              Query("vector(0)", "none"), width=12, soft_most=1.0),
        lines("Waiting memory", "Queued requests (max_requests_mib), requests that are received or answered (max_received_mib), answers "
              "that are not read (max_answers_mib).", BYTES,
              Query("sum(presift_admission_waiting_bytes)", "queued"),
              Query('sum(presift_received_bytes{job="presift-orchestrator"})', "received"),
              Query("sum(presift_answers_unread_bytes)", "unread answers"), width=6, soft_most=2.0**20),
        lines("Tenants and leases", "Tenants with queued requests; leases on prompts being scored and on tenants' calls.",
              NUMBER, Query("sum(presift_admission_waiting_tenants)", "tenants waiting"),
              Query("sum by (presift_of) (presift_leases_held)", "leases: {{presift_of}}"),
              Query(f"sum by (presift_limit) (rate(presift_limits_trouble_total{_RATE}))", "uncounted/s: {{presift_limit}}"), width=6),
    ]  # fmt: skip


def _processes() -> list[Panel]:
    name = '"{{job}} {{instance}}"'.strip('"')
    return [
        lines("Memory", "Resident memory of every process, without SGLang's workers.", BYTES,
              Query('process_resident_memory_bytes{job=~"presift-.+"}', name)),
        lines("Memory before requests end", "Memory without mapped files as a share of max_memory_mib. Above 100 % (red line) gRPC requests "
              "that are incomplete end.", SHARE, Query("presift_memory_used_bytes / presift_memory_limit_bytes", name), line_at=1.0),
        lines("CPU", "CPU seconds per second: 1 is one core.", NUMBER,
              Query(f'rate(process_cpu_seconds_total{{job=~"presift-.+"}}{_RATE})', name)),
        lines("Open files", "Open sockets and files as a share of the limit. A steady rise is a leak.", SHARE,
              Query('process_open_fds{job=~"presift-.+"} / process_max_fds{job=~"presift-.+"}', name)),
        lines("Longest stall of the event loop", "Within a minute: all calls of the process stood still for so long. Alert above 0.5 s, "
              "in each of 5 minutes (red line).", SECONDS, Query("presift_loop_stall_seconds", name), line_at=0.5),
        lines("Log lines dropped", "What reads the process's log is slower than it writes.", PER_SECOND,
              Query(f"rate(presift_log_dropped_total{_RATE})", name), soft_most=1.0),
    ]  # fmt: skip
