"""A plan as tables and as JSON, with the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from presift.cli.planning.shapes import Shape
from presift.cli.planning.sizing import ANSWER_TOKEN_MS, PROMPT_TOKEN_MS, REQUEST_MS, Limits, Need, Sizes
from presift.cli.planning.workload import Demand, Workload
from presift.orchestrator.routing.cost_model import StageCosts, TokenWork


@dataclass(frozen=True, slots=True)
class Plan:
    """`with_presift` and, for comparison, `without`: every prompt read in full; None (and `why_not`) where that cannot
    be. `basis`: where the speeds of draft and target are from."""

    workload: Workload
    limits: Limits
    target: Shape
    speeds: StageCosts
    asked: tuple[Demand, ...]
    with_presift: Sizes
    without: Sizes | None
    why_not: str
    basis: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Seconds, tokens, bytes; no number is infinite."""
        return {
            "workload": asdict(self.workload),
            "limits": asdict(self.limits),
            "requests": [asdict(each) for each in self.asked],
            "with_presift": _sizes(self.with_presift, self.target.kv_bytes),
            "without": None if self.without is None else _sizes(self.without, self.target.kv_bytes),
            "why_not": self.why_not,
            "speeds": asdict(self.speeds),
            "kv_bytes_per_token": self.target.kv_bytes,
            "basis": list(self.basis),
        }

    def show(self, console: Console) -> None:
        """Replicas, what each length of prompt gets, and what all this rests on."""
        console.print(_replicas(self), "", _lengths(self.asked))
        for line in (*_told(self), *self.basis):
            console.print(line, highlight=False, soft_wrap=True)


def _sizes(found: Sizes, kv_bytes: int) -> dict[str, Any]:
    need = found.targets.need
    held = _held(found)
    return {
        "drafts": asdict(found.drafts),
        "targets": asdict(need),
        "orchestrators": asdict(found.orchestrators),
        "decoding_per_target": found.targets.decoding,
        "seconds_per_answer_token": found.targets.token_s,
        "kv_tokens_held": round(held),
        "kv_bytes_held": round(held * kv_bytes),
    }


def _replicas(plan: Plan) -> Table:
    table = Table("", "with presift", "all in full" + ("" if plan.without else f": {plan.why_not}"), box=None)

    def row(name: str, of: Callable[[Sizes], str]) -> None:
        table.add_row(name, of(plan.with_presift), "-" if plan.without is None else of(plan.without))

    row("drafts", lambda each: _need(each.drafts))
    row("targets", lambda each: _need(each.targets.need))
    row("orchestrators", lambda each: _need(each.orchestrators))
    row("wait for a draft", lambda each: f"{_brief(each.drafts.wait_s)} s")
    row("wait for a target", lambda each: f"{_brief(each.targets.need.wait_s)} s")
    row("a token of an answer", lambda each: f"{_brief(each.targets.token_s)} s")
    row("answers at once", lambda each: f"{each.targets.decoding * each.targets.need.replicas:,.1f}")
    row("KV held, tokens", lambda each: f"{_held(each):,.0f}")
    row("KV held, GiB", lambda each: f"{_held(each) * plan.target.kv_bytes / 2**30:,.2f}")
    return table


def _held(found: Sizes) -> float:
    """KV tokens in all targets."""
    return found.targets.kv_tokens * found.targets.need.replicas


def _lengths(asked: Sequence[Demand]) -> Table:
    heads = ("prompt", "share", "route", "reads", "holds", "draft s", "target s", "TTFT s, nobody before")
    table = Table(*heads, box=None)
    for each in asked:
        seconds = map(_brief, (each.draft_s, each.target_s, each.ttft_s))
        tokens = (f"{each.read_tokens:,}", f"{each.held_tokens:,}")
        table.add_row(f"{each.tokens:,}", f"{each.share:.0%}", each.route.value, *tokens, *seconds)
    return table


def _told(plan: Plan) -> list[str]:
    speeds, load, limits = plan.speeds, plan.workload, plan.limits
    per_request = speeds.target.token_ms + speeds.decoding.token_ms * 1e3
    lengths = " and ".join(f"{length.tokens:,}" for length in load.mix[:3])
    draft, target = (
        " and ".join(f"{curve.ms(TokenWork(length.tokens)) / 1e3:,.2f}" for length in load.mix[:3])
        for curve in (speeds.draft, speeds.target)
    )
    return [
        "",
        f"rests on: {load.rate:g} requests/s, {load.answer_tokens} tokens an answer, {load.cache_hits:.0%} of the "
        f"compressed prompts in the cache, at most {limits.utilisation:.0%} of a replica's time and KV in use",
        f"reading {lengths} tokens: a draft {draft} s, a target {target} s",
        f"a decode step: {speeds.decoding.call_ms:.1f} ms, and {per_request:.2f} ms a request with 1,000 KV tokens",
        f"a target: {limits.kv_pool_tokens:,} KV tokens of {plan.target.kv_bytes / 1024:.0f} KiB ({plan.target.name}), "
        f"{limits.max_running} requests at once",
        f"an orchestrator, measured here: {REQUEST_MS:g} ms a request, {PROMPT_TOKEN_MS * 1e3:g} ms for 1,000 prompt "
        f"tokens, {ANSWER_TOKEN_MS:g} ms a token of the answer, of one core",
    ]


def _need(need: Need) -> str:
    if not need.replicas:
        return "0"
    why = "" if need.bound_by == "time" else f", {need.bound_by} decides"
    return f"{need.replicas} ({need.utilisation:.0%} of time used{why})"


def _brief(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
