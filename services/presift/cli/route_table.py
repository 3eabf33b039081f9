"""`presift route`: every route with its predicted cost, and AUTO's choice. Nothing is run and nobody is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from presift.core.errors import PresiftError
from presift.core.plan import Route
from presift.orchestrator.candidates import Candidate, Question, candidates
from presift.orchestrator.choices import Choice, Defaults, Facts
from presift.orchestrator.costs import Outlook
from presift.orchestrator.request import AutoCapacity, Budget, KvOptions
from presift.orchestrator.routing import choose
from presift.orchestrator.settings import OrchestratorSettings
from presift.orchestrator.terms import Terms
from presift.orchestrator.terms_in_force import terms_of

__all__ = ["AutoCapacity", "Budget", "Outcome", "outcome", "terms_for"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The table and what was chosen, or the refusal that the caller would get."""

    table: list[Candidate]
    choice: Choice | None
    refusal: str = ""

    @property
    def is_answered(self) -> bool:
        return self.choice is not None

    def as_json(self) -> dict[str, Any]:
        chosen = self.choice
        return {
            "routes": [_row(each) for each in self.table],
            "route": None if chosen is None else chosen.route.value,
            "reason": None if chosen is None else chosen.reason.value,
            "detail": self.refusal if chosen is None else chosen.detail,
        }

    def show(self, console: Console) -> None:
        """The table, the choice marked, and the reason in words."""
        table = Table("", "route", "reads", "holds", "draft ms", "target ms", "TTFT ms", "ms a token", "budget")
        for each in self.table:
            row = _row(each)
            mark = "->" if self.choice is not None and self.choice.route is each.route else ""
            costs = ("" if value is None else f"{value:,.0f}" for value in list(row.values())[1:-1])
            table.add_row(mark, row["route"], *costs, row["budget"])
        console.print(table)
        if self.choice is None:
            console.print(f"refused: {self.refusal}")
        else:
            console.print(f"{self.choice.route}: {self.choice.reason} ({self.choice.detail})")


def terms_for(tokens: int, policy_file: Path | None, target_id: str, tenant: str | None) -> Terms:
    """The orchestrator's terms, from this policy file or that of its settings. Raises PresiftError."""
    settings = _settings()
    if policy_file is not None:
        settings = settings.model_copy(update={"policy_file": policy_file})
    return terms_of(settings).table.terms_for(tokens, target_id, tenant)


def outcome(
    terms: Terms, budget: Budget, tokens: int, *, cached_prefix: int, context: int, max_new_tokens: int
) -> Outcome:
    """What AUTO makes of a prompt without protected spans, at these terms and the seeds' speeds."""
    defaults, budget = terms.defaults, terms.budget_over(budget)
    outlook = Outlook(cached_tokens=min(cached_prefix, tokens), reads_beside=_settings().prefill_while_drafting)
    facts = _facts(defaults, outlook, tokens, context, max_new_tokens)
    table = candidates(Question(budget, KvOptions(), facts, defaults))
    try:
        return Outcome(table, choose(None, budget, KvOptions(), facts, defaults))
    except PresiftError as error:
        return Outcome(table, None, error.message)


def _settings() -> OrchestratorSettings:
    return OrchestratorSettings(_cli_parse_args=False)  # type: ignore[call-arg]


def _facts(defaults: Defaults, outlook: Outlook, tokens: int, context: int, max_new_tokens: int) -> Facts:
    return Facts(
        prompt_tokens=tokens,
        must_keep=min(tokens, defaults.spec_pc.window),
        must_keep_kv=min(tokens - 1, defaults.spec_kv.window),
        max_new_tokens=max_new_tokens,
        context_tokens=context,
        supported=frozenset(Route),
        outlook=outlook,
    )


def _row(candidate: Candidate) -> dict[str, Any]:
    found = candidate.forecast
    over = ", ".join(f"{name} {limit}" for name, _, limit in candidate.over)
    return {
        "route": candidate.route.value,
        "read_tokens": None if found is None else found.read_tokens,
        "kv_tokens": None if found is None else found.kv_tokens,
        "draft_ms": None if found is None else round(found.draft_ms, 1),
        "target_ms": None if found is None else round(found.target_ms, 1),
        "ttft_ms": None if found is None else round(found.ttft_ms, 1),
        "step_ms": None if found is None else round(found.step_ms, 1),
        "budget": candidate.why_not or (f"over {over}" if over else "met"),
    }
