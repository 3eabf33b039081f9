"""The cost in quality: agreement with full, coverage, fallbacks."""

from __future__ import annotations

from collections.abc import Iterator

from panels import (
    GREEN,
    NUMBER,
    PER_SECOND,
    RED,
    SHARE,
    TOKENS,
    YELLOW,
    Panel,
    Query,
    gauges,
    lines,
    number,
)

TITLE = "presift: what it costs in quality"
ABOUT = "How far compressed answers agree with full's, how much attention is kept, and which prompts were processed in full instead."

_RATE = "[$__rate_interval]"
_RANGE = "[$__range]"
_AGREEMENT, _OVERLAP, _FACTS = "presift_guard_agreement", "presift_guard_overlap", "presift_guard_facts"
_GOOD = (
    (0.45, YELLOW),
    (0.65, GREEN),
)  # the guard disables a route below the first value and enables it above the second


def rows() -> Iterator[tuple[str, list[Panel]]]:
    yield "In the time shown", _totals()
    yield "Agreement with full: the same request answered twice, in the background", _agreement()
    yield "Coverage: the share of the window's attention that is kept (a proxy, not a measure, of loss)", _coverage()
    yield "Not compressed", _fallbacks()


def _mean(name: str, of: str, span: str) -> str:
    return f"{of}(rate({name}_sum{span})) / {of}(rate({name}_count{span}))"


def _totals() -> list[Panel]:
    compared = 'presift_guard_samples_total{presift_outcome="compared"}'
    # As the rule presift:fallbacks:ratio_rate5m, over the time shown.
    trouble = f"(sum(increase(presift_fallbacks_total{_RANGE})) or vector(0))"
    compressed = f'(sum(increase(presift_requests_total{{presift_route!="full"}}{_RANGE})) or vector(0))'
    return [
        number("Agreement", "Mean agreement of compressed answers with full's, in facts and wording; 1 means identical. Below 0.45 the "
               "guard switches a route off.", SHARE, Query(_mean(_AGREEMENT, "sum", _RANGE)), base=RED, worry=_GOOD, decimals=0),
        number("Identical answers", "Share of the compared answers that equal full's word for word.", SHARE,
               Query(f"(sum(increase(presift_guard_exact_total{_RANGE})) or vector(0)) / sum(increase({compared}{_RANGE}))"),
               decimals=0),
        number("Compared", "Requests that full answered too. If these are few, the means in this row say little.", NUMBER,
               Query(f"sum(increase({compared}{_RANGE}))"), decimals=0, sparkline=False),
        number("Coverage", "Mean share of the attention on the kept tokens.", SHARE,
               Query(_mean("presift_coverage", "sum", _RANGE)), base=RED, worry=((0.7, YELLOW), (0.85, GREEN)), decimals=0),
        number("Fallbacks", "Share of the prompts to compress that were processed without the draft because of a failure: no loss of quality, but more cost.", SHARE,
               Query(f"{trouble} / ({compressed} + {trouble})"), base=GREEN, worry=((0.02, YELLOW), (0.1, RED)), decimals=1),
        number("Routes off now", "Pairs of route and prompt length that the guard has switched off.", NUMBER,
               Query("sum(max by (presift_route, presift_band) (presift_guard_off)) or vector(0)"),
               base=GREEN, worry=((1, RED),)),
    ]  # fmt: skip


def _agreement() -> list[Panel]:
    by = "sum by (presift_route, presift_band) "
    return [
        lines("Agreement by route", "Mean agreement with full's answer, over the past hour.", SHARE,
              Query("presift:guard_agreement:mean_rate1h", "{{presift_route}}"), most=1.0, line_at=0.45),
        gauges("Agreement by route and length", "In the time shown. Red: below 0.45, where the guard switches the route off.",
               SHARE, Query(_mean(_AGREEMENT, by, _RANGE), "{{presift_route}} {{presift_band}}"), most=1.0, base=RED, worry=_GOOD),
        gauges("First difference from full", "Median position (in tokens) of the first difference, in answers that differ.", TOKENS,
               Query(f"histogram_quantile(0.5, sum by (le, presift_route) (rate(presift_guard_first_divergence_bucket{_RANGE})))",
                     "{{presift_route}}")),
        lines("Samples", "compared; interrupted or dropped: callers' requests had priority; failed: no second answer.", NUMBER,
              Query("sum by (presift_outcome) (increase(presift_guard_samples_total[5m]))", "{{presift_outcome}} in 5 min"),
              stacked=True),
        lines("Identical answers", "Answers that equal full's, by route, in 5 minutes.", NUMBER,
              Query("sum by (presift_route) (increase(presift_guard_exact_total[5m]))", "{{presift_route}}"),
              Query("sum(increase(presift_guard_exact_total[5m])) or vector(0)", "all"), soft_most=1.0),
        lines("Switched off", "1 while the guard has switched a route off for a prompt length, and the number of switches.", NUMBER,
              Query("max by (presift_route, presift_band) (presift_guard_off)", "{{presift_route}} {{presift_band}}"),
              Query("sum by (presift_to) (increase(presift_guard_switched_total[5m]))", "switched {{presift_to}}"),
              steps=True, most=1.5),
        lines("Facts and wording", "The two parts of the agreement. facts: numbers, identifiers, names and quoted strings of full's answer "
              "that the route's answer has too; wording: tokens in the same order. Falling facts are a loss; falling wording alone is "
              "another way to say the same.", SHARE,
              Query(_mean(_FACTS, "sum by (presift_route) ", _RATE), "{{presift_route}} facts"),
              Query(_mean(_OVERLAP, "sum by (presift_route) ", _RATE), "{{presift_route}} wording"), most=1.0, width=24, height=6),
    ]  # fmt: skip


def _coverage() -> list[Panel]:
    low = "histogram_quantile(0.1, sum by (le, presift_route) (rate(presift_coverage_bucket{}{})))"
    return [
        lines("Coverage, mean", "By route; alert below 0.7 for half an hour (red line).", SHARE,
              Query(_mean("presift_coverage", "sum by (presift_route) ", _RATE), "{{presift_route}}"), most=1.0, line_at=0.7),
        lines("Coverage, the worst tenth", "10 % of requests have a lower coverage.", SHARE,
              Query(low.format("", _RATE), "{{presift_route}}"), most=1.0),
        gauges("Coverage by kind", "mask: of the draft's token mask; kv: of the KV pairs that the target selected.", SHARE,
               Query(_mean("presift_coverage", "sum by (presift_route, presift_of) ", _RANGE), "{{presift_route}} {{presift_of}}"),
               most=1.0, base=RED, worry=((0.7, YELLOW), (0.85, GREEN))),
        lines("Renewals of KV", "Times that targets selected KV anew while an answer was generated. skipped: the prompt's KV had been "
              "evicted or the pool was full, so the answer continued on older KV. Many of these: add KV slots.", PER_SECOND,
              Query(f"sum by (presift_outcome) (rate(presift_target_kv_renewals_total{_RATE}))", "{{presift_outcome}}"),
              Query("vector(0)", "none"), stacked=True, width=24, height=6, soft_most=0.1),
    ]  # fmt: skip


def _fallbacks() -> list[Panel]:
    return [
        lines("Processed without the draft because of a failure", "By reason: the draft is slow, unreachable, overloaded or another model, "
              "or its mask was refused.", PER_SECOND,
              Query(f"sum(rate(presift_fallbacks_total{_RATE})) or vector(0)", "all"),
              Query(f"sum by (presift_reason) (rate(presift_fallbacks_total{_RATE}))", "{{presift_reason}}"), width=12, soft_most=0.1),
        lines("Every decision, by reason", "Why each request got its route.", PER_SECOND,
              Query(f"sum by (presift_route, presift_reason) (rate(presift_requests_total{_RATE}))",
                    "{{presift_route}}: {{presift_reason}}"), stacked=True, width=12),
    ]  # fmt: skip
