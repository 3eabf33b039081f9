"""A plan as tables and as JSON, with the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from presift.cli.planning.shapes import Shape
from presift.cli.planning.sizing import ANSWER_TOKEN_MS, PROMPT_TOKEN_MS, REQUEST_MS, Limits, RoleSize, Sizes
from presift.cli.planning.workload import LengthWork, Workload
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts, TokenWork


@dataclass(frozen=True, slots=True)
class Plan:
    """Replicas `with_presift` and, for comparison, `without`: every prompt is read in full. `without` is None if that
    is impossible, and `why_not` is the reason. `basis`: where the speeds of draft and target come from."""

    workload: Workload
    limits: Limits
    target: Shape
    speeds: StageCosts
    requests: tuple[LengthWork, ...]
    with_presift: Sizes
    without: Sizes | None
    why_not: str
    basis: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Seconds, tokens and bytes; all numbers are finite."""
        return {
            "workload": asdict(self.workload),
            "limits": asdict(self.limits),
            "requests": [asdict(each) for each in self.requests],
            "with_presift": _sizes(self.with_presift, self.target.kv_bytes),
            "without": None if self.without is None else _sizes(self.without, self.target.kv_bytes),
            "why_not": self.why_not,
            "speeds": asdict(self.speeds),
            "kv_bytes_per_token": self.target.kv_bytes,
            "basis": list(self.basis),
        }

    def show(self, console: Console) -> None:
        """Print the replicas, the route and costs of each prompt length, and the assumptions."""
        console.print(_replicas(self), "", _lengths(self.requests))
        for line in ("", *_assumptions(self), *self.basis):
            console.print(line, highlight=False, soft_wrap=True)


def _sizes(sizes: Sizes, kv_bytes: int) -> dict[str, Any]:
    held_tokens = _held_tokens(sizes)
    return {
        "drafts": asdict(sizes.drafts),
        "targets": asdict(sizes.targets.size),
        "orchestrators": asdict(sizes.orchestrators),
        "decoding_per_target": sizes.targets.decoding,
        "seconds_per_answer_token": sizes.targets.token_s,
        "kv_tokens_held": round(held_tokens),
        "kv_bytes_held": round(held_tokens * kv_bytes),
    }


def _replicas(plan: Plan) -> Table:
    without = "without presift" + ("" if plan.without else f": {plan.why_not}")
    table = Table("", "with presift", without, box=None)

    def row(name: str, cell: Callable[[Sizes], str]) -> None:
        table.add_row(name, cell(plan.with_presift), "-" if plan.without is None else cell(plan.without))

    row("drafts", lambda each: _replica_count(each.drafts))
    row("targets", lambda each: _replica_count(each.targets.size))
    row("orchestrators", lambda each: _replica_count(each.orchestrators))
    row("wait for a draft", lambda each: f"{_rounded(each.drafts.wait_s)} s")
    row("wait for a target", lambda each: f"{_rounded(each.targets.size.wait_s)} s")
    row("time per answer token", lambda each: f"{_rounded(each.targets.token_s)} s")
    row("concurrent answers", lambda each: f"{each.targets.decoding * each.targets.size.replicas:,.1f}")
    row("KV held, tokens", lambda each: f"{_held_tokens(each):,.0f}")
    row("KV held, GiB", lambda each: f"{_held_tokens(each) * plan.target.kv_bytes / 2**30:,.2f}")
    return table


def _held_tokens(sizes: Sizes) -> float:
    """KV tokens in all targets."""
    return sizes.targets.kv_tokens * sizes.targets.size.replicas


def _lengths(requests: Sequence[LengthWork]) -> Table:
    headings = ("prompt", "share", "route", "read", "KV held", "draft s", "target s", "TTFT s, idle system")
    table = Table(*headings, box=None)
    for each in requests:
        seconds = map(_rounded, (each.draft_s, each.target_s, each.ttft_s))
        tokens = (f"{each.read_tokens:,}", f"{each.held_tokens:,}")
        table.add_row(f"{each.tokens:,}", f"{each.share:.0%}", each.route.value, *tokens, *seconds)
    return table


def _assumptions(plan: Plan) -> list[str]:
    speeds, load, limits = plan.speeds, plan.workload, plan.limits
    lengths = [length.tokens for length in load.mix[:3]]
    per_answer_ms = speeds.target.token_ms + speeds.decoding.token_ms * 1e3
    return [
        f"assumptions: {load.rate:g} requests/s, {load.answer_tokens} tokens per answer, {load.cache_hits:.0%} of the "
        f"compressed prompts in the cache, at most {limits.utilisation:.0%} of a replica's time and KV in use",
        f"time to read {_joined([f'{tokens:,}' for tokens in lengths])} tokens: "
        f"draft {_seconds(speeds.draft, lengths)} s, target {_seconds(speeds.target, lengths)} s",
        f"decode step: {speeds.decoding.call_ms:.1f} ms, plus {per_answer_ms:.2f} ms per answer with 1,000 KV tokens",
        f"each target: {limits.kv_pool_tokens:,} KV tokens of {plan.target.kv_bytes / 1024:.0f} KiB "
        f"({plan.target.name}), {limits.max_running} concurrent requests",
        f"each orchestrator (measured): {REQUEST_MS:g} ms per request, {PROMPT_TOKEN_MS * 1e3:g} ms per 1,000 prompt "
        f"tokens, {ANSWER_TOKEN_MS:g} ms per answer token, on one core",
    ]


def _seconds(curve: CostCurve, lengths: Sequence[int]) -> str:
    return _joined([f"{curve.ms(TokenWork(tokens)) / 1e3:,.2f}" for tokens in lengths])


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words)


def _replica_count(role: RoleSize) -> str:
    if not role.replicas:
        return "0"
    limit = "" if role.bound_by == "time" else f", limited by {role.bound_by}"
    return f"{role.replicas} ({role.utilisation:.0%} of time used{limit})"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
