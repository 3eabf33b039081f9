"""Decisions, usage, explanations and replicas, each as a line of text for the terminal."""

from __future__ import annotations

from presift_client import Decision, Explanation, Replica, Usage


def decision_line(decision: Decision) -> str:
    """The route, why it was chosen, and what is kept."""
    coverage = "" if decision.coverage is None else f", coverage {decision.coverage:.2f}"
    return (
        f"[{decision.route}: {decision.reason} ({decision.detail}); "
        f"kept {decision.kept_tokens} of {decision.prompt_tokens} tokens{_kv_plan(decision)}{coverage}, "
        f"cache {decision.cache}]"
    )


def usage_line(usage: Usage) -> str:
    """What the answer took: times, tokens, KV."""
    return (
        f"[first token after {usage.ttft_ms:.0f} ms ({usage.target_ttft_ms:.0f} ms in the target), "
        f"{usage.completion_tokens} tokens in {usage.total_ms:.0f} ms, finish reason {usage.finish_reason}; "
        f"{usage.kv_tokens} KV tokens held for {usage.prompt_tokens} prompt tokens, "
        f"{usage.cached_tokens} of them cached{_kv_selection(usage)}{_renewals(usage)}{_accepted(usage)}"
        f"{', continued by a second target' if usage.migrated else ''}]"
        f"{''.join(f' [warning: {warning}]' for warning in usage.warnings)}"
    )


def explanation_lines(explanation: Explanation) -> list[str]:
    """The decision and, if the target selected KV, what it reported about its selection."""
    lines = [decision_line(explanation.decision)]
    mask = explanation.kv_mask
    if mask is not None:
        layers = "all layers" if mask.layers == 1 else f"{mask.layers} layers"
        heads = "all KV heads" if mask.kv_heads == 1 else f"{mask.kv_heads} KV heads"
        dropped = sum(span.tokens for span in explanation.spans if not span.kept)
        lines.append(f"[the target selected KV in {layers}, {heads}; {dropped} tokens are dropped everywhere]")
    if explanation.target_coverage is not None:
        lines.append(f"[coverage in the target {explanation.target_coverage:.2f}]")
    return lines


def replica_line(replica: Replica) -> str:
    """Address, health, circuit breaker and load of a replica, and why it is not used."""
    health = "healthy" if replica.healthy else "unhealthy"
    breaker = "" if replica.breaker == "closed" else f", circuit breaker {replica.breaker}"
    unused = f", not used: {replica.unused}" if replica.unused else ""
    return f"{replica.address} {health}{breaker}, {replica.in_flight} in flight{unused}"


def renewal_parts(decision: Decision) -> list[str]:
    """Who made the lookahead, and how KV is selected while the answer is generated."""
    parts = [] if decision.kv_lookahead is None else [f"lookahead by the {decision.kv_lookahead}"]
    if decision.first_full_tokens:
        parts.append(f"first {decision.first_full_tokens} tokens on the full KV")
    if decision.renew_every:
        parts.append(f"renewed at least every {decision.renew_every} tokens by the newest {decision.renew_window}")
    return parts


def _kv_plan(decision: Decision) -> str:
    """The planned KV, on routes that drop KV."""
    if decision.kv_capacity is None:
        return ""
    parts = [
        f"{decision.kv_tokens} KV tokens (capacity {decision.kv_capacity}, selected by {decision.kv_selection})",
        "full prefix kept" if decision.keep_full_prefix else "full prefix freed",
        *renewal_parts(decision),
    ]
    if decision.prefill_ms:
        parts.append(f"prefill {decision.prefill_ms:.0f} ms in parallel with {decision.draft_ms:.0f} ms of drafting")
    return "".join(f", {part}" for part in parts)


def _kv_selection(usage: Usage) -> str:
    """What the target reported about its KV selection, if it made or reused one."""
    if usage.reused_entry:
        selection = ", compressed entry reused"
    elif usage.score_ms or usage.publish_ms:
        selection = f", KV scored in {usage.score_ms:.0f} ms and published in {usage.publish_ms:.0f} ms"
    else:
        selection = ""
    return selection if usage.coverage is None else f"{selection}, coverage {usage.coverage:.2f}"


def _renewals(usage: Usage) -> str:
    """How often the KV was selected anew, and what was held meanwhile, if that was due at all."""
    if not usage.renewals and not usage.renewals_skipped:
        return ""
    skipped = f" ({usage.renewals_skipped} skipped)" if usage.renewals_skipped else ""
    lowest = "" if usage.coverage_min is None else f", lowest coverage {usage.coverage_min:.2f}"
    held = f", {usage.kv_tokens_mean:.0f} KV tokens on average with the answer" if usage.kv_tokens_mean else ""
    return f", {usage.renewals} renewals{skipped}{lowest}{held}"


def _accepted(usage: Usage) -> str:
    """How many tokens of the draft's lookahead began the answer."""
    return f", {usage.accepted_tokens} tokens accepted from the lookahead" if usage.accepted_tokens else ""
