"""The savings: prompt tokens that no target reads, KV that no target holds, a shorter time to first token."""

from __future__ import annotations

from collections.abc import Iterator

from panels import (
    GREEN,
    PER_SECOND,
    RED,
    SECONDS,
    SHARE,
    TIMES,
    TOKENS,
    TOKENS_PER_SECOND,
    YELLOW,
    Panel,
    Query,
    gauges,
    lines,
    number,
)

TITLE = "presift: what it saves"
ABOUT = "Prompt tokens that no target reads, KV that no target holds, and a shorter time to first token than full's."

_RATE = "[$__rate_interval]"
_RANGE = "[$__range]"
_PROMPT, _KV = "presift_prompt_tokens_total", "presift_kv_tokens_total"
_TTFT = 'gen_ai_server_time_to_first_token_seconds_bucket{job="presift-orchestrator"}'
# Of the routes that save time; spec_kv reads the whole prompt and saves KV.
_AGAINST = 'presift_forecast_against_full_bucket{presift_route=~"spec_pc|spec_kv_pc"}'


def rows() -> Iterator[tuple[str, list[Panel]]]:
    yield "In the time shown", _totals()
    yield "Tokens", _tokens()
    yield "Time", _time()
    yield "Work that is not repeated", _caches()


def _dropped(tokens: str) -> str:
    dropped = f'{tokens}{{presift_fate="dropped"}}'
    return f"(sum(increase({dropped}{_RANGE})) or vector(0)) / sum(increase({tokens}{_RANGE}))"


def _totals() -> list[Panel]:
    hits = 'presift_cache_operations_total{presift_operation="get", presift_outcome=~"hit|miss"}'
    hit = 'presift_cache_operations_total{presift_operation="get", presift_outcome="hit"}'
    return [
        number("Prompt tokens not read", "Dropped by spec_pc and spec_kv_pc before a target received them.", TOKENS,
               Query(f'sum(increase({_PROMPT}{{presift_fate="dropped"}}[$__range]))'), base=GREEN, sparkline=False),
        number("Of all prompt tokens", "The share that no target reads.", SHARE,
               Query(_dropped(_PROMPT)), base=GREEN, decimals=0),
        number("KV tokens not held", "Prompt tokens whose KV no target holds while it decodes.", TOKENS,
               Query(f'sum(increase({_KV}{{presift_fate="dropped"}}[$__range]))'), base=GREEN, sparkline=False),
        number("Of all KV", "The share that is not held.", SHARE,
               Query(_dropped(_KV)), base=GREEN, decimals=0),
        number("First token against full", "Median of spec_pc and spec_kv_pc: 0.25 x is a quarter of the time predicted for full.",
               TIMES, Query(f"histogram_quantile(0.5, sum by (le) (rate({_AGAINST}{_RANGE})))"),
               base=GREEN, worry=((0.9, YELLOW), (1, RED)), decimals=2),
        number("Cache hits", "Share of lookups of compressed prompts that hit; a hit needs no draft.", SHARE,
               Query(f"(sum(increase({hit}{_RANGE})) or vector(0)) / sum(increase({hits}{_RANGE}))"), decimals=0),
    ]  # fmt: skip


def _tokens() -> list[Panel]:
    share = f'sum by (presift_route) (rate({_KV}{{presift_fate="dropped"}}{_RATE})) / sum by (presift_route) (rate({_KV}{_RATE}))'
    return [
        lines("Prompt tokens", "Tokens of incoming prompts that targets read (kept) and did not read (dropped).",
              TOKENS_PER_SECOND, Query(f"sum by (presift_fate) (rate({_PROMPT}{_RATE}))", "{{presift_fate}}"), stacked=True),
        lines("KV of prompts", "Prompt tokens whose KV is held during decoding (held), and others (dropped).",
              TOKENS_PER_SECOND, Query(f"sum by (presift_fate) (rate({_KV}{_RATE}))", "{{presift_fate}}"), stacked=True),
        lines("KV not held, by route", "The share of a route's prompt tokens whose KV is not held.", SHARE,
              Query(share, "{{presift_route}}"), most=1.0),
        lines("Work of the targets", "Tokens that targets prefilled, found in their prefix cache, and generated; accepted: generated "
              "tokens that were not decoded, because the draft's lookahead was right.",
              TOKENS_PER_SECOND, Query(f"sum by (presift_kind) (rate(presift_target_tokens_total{_RATE}))", "{{presift_kind}}"),
              Query(f"sum(rate(presift_target_lookahead_accepted_total{_RATE})) or vector(0)", "accepted")),
        lines("Cost: work of the drafts", "Tokens that drafts read and generated for these savings.", TOKENS_PER_SECOND,
              Query(f"sum by (presift_kind) (rate(presift_draft_tokens_total{_RATE}))", "{{presift_kind}}")),
        gauges("Length of prompts", "Mean prompt length by route, in the time shown: longer prompts save more.", TOKENS,
               Query('sum by (presift_route) (increase(gen_ai_client_token_usage_sum{gen_ai_token_type="input"}[$__range])) / '
                     'sum by (presift_route) (increase(gen_ai_client_token_usage_count{gen_ai_token_type="input"}[$__range]))',
                     "{{presift_route}}")),
    ]  # fmt: skip


def _time() -> list[Panel]:
    return [
        lines("First token, by route (p50)", "Routes serve prompts of different lengths, so compare with the next panel.",
              SECONDS, Query(f"histogram_quantile(0.5, sum by (le, presift_route) (rate({_TTFT}{_RATE})))", "{{presift_route}}")),
        lines("First token against full (p50)", "Real time divided by the time predicted for full on the same prompt and target. "
              "Below the red line a route saves time; spec_kv, which reads the whole prompt, saves KV.", TIMES,
              Query("histogram_quantile(0.5, sum by (le, presift_route) "
                    f"(rate(presift_forecast_against_full_bucket{_RATE})))", "{{presift_route}}"), line_at=1.0),
        lines("First token, by cache (p50)", "hit: the compressed prompt was known; miss: a draft scored it; shared: another "
              "request was scoring it.", SECONDS,
              Query(f"histogram_quantile(0.5, sum by (le, presift_cache) (rate({_TTFT}{_RATE})))", "{{presift_cache}}")),
    ]  # fmt: skip


def _caches() -> list[Panel]:
    return [
        lines("Cache of compressed prompts", "Lookups by outcome. corrupt, other_version, timeout, error and skipped count as a miss.", PER_SECOND,
              Query(f'sum by (presift_outcome) (rate(presift_cache_operations_total{{presift_operation="get"}}{_RATE}))',
                    "{{presift_outcome}}"), stacked=True),
        lines("Writes and claims", "put stores a mask; claim keeps two orchestrators from scoring the same prompt.", PER_SECOND,
              Query(f'sum by (presift_operation, presift_outcome) (rate(presift_cache_operations_total{{presift_operation!="get"}}{_RATE}))',
                    "{{presift_operation}} {{presift_outcome}}")),
        lines("Reused compressed entries", "Requests whose KV selection was in the target's radix cache, so that nothing was read "
              "or scored.", PER_SECOND,
              Query(f"sum by (presift_route) (rate(presift_entries_reused_total{_RATE}))", "{{presift_route}}"),
              Query(f"sum(rate(presift_prefill_failures_total{_RATE})) or vector(0)", "failed early prefills"), soft_most=0.1),
    ]  # fmt: skip
