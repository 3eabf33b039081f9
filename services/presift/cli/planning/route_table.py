"""`presift route`: every route with its predicted cost, and AUTO's choice. Nothing is run: an orchestrator is asked for
what it knows, if for anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from presift.cli.render import forecasts
from presift.core.errors import PresiftError
from presift.core.plan import Route
from presift.orchestrator.api.grpc.forecasts import routes_to_wire
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.config.reload import policy_source
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import AutoCapacity, Budget
from presift.orchestrator.routing.candidates import candidates
from presift.orchestrator.routing.choice import Defaults, RouteChoice, RoutingInputs
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts, SystemState, scoring_guess
from presift.orchestrator.routing.router import choose
from presift_client import Info, Model, RouteForecast, StageSpeed
from presift_client.forecasts import route_of

__all__ = ["AutoCapacity", "Behind", "Budget", "Outcome", "Prompt", "behind", "outcome", "policy_note", "terms_for"]

_CONTEXT_TOKENS = 32_768
_ENV = "or PRESIFT_ORCHESTRATOR_POLICY_FILE"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be read, all in tokens."""

    tokens: int
    cached_prefix: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind an orchestrator, as far as predictions rest on it: by default the demo pair on two CPU cores.

    `compress_above_tokens` None is the terms'.
    """

    context_tokens: int = _CONTEXT_TOKENS
    speeds: StageCosts = StageCosts()  # noqa: RUF009 (frozen)
    supported: frozenset[Route] = frozenset(Route)
    compress_above_tokens: int | None = None
    target_id: str = ""
    draft_context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The table and what was chosen, or the refusal that the caller would get."""

    routes: tuple[RouteForecast, ...]
    choice: RouteChoice | None
    refusal: str = ""

    @property
    def is_answered(self) -> bool:
        return self.choice is not None

    def as_json(self) -> dict[str, Any]:
        chosen = self.choice
        return {
            "routes": [asdict(each) for each in self.routes],
            "route": None if chosen is None else chosen.route.value,
            "reason": None if chosen is None else chosen.reason.value,
            "detail": self.refusal if chosen is None else chosen.detail,
        }

    def show(self, console: Console) -> None:
        """The table, the choice marked, and the reason in words."""
        forecasts.show(self.routes, console)
        if self.choice is None:
            console.print(Text(f"refused: {self.refusal}"))
        else:
            console.print(Text(f"{self.choice.route}: {self.choice.reason} ({self.choice.detail})"))


def terms_for(tokens: int, policy_file: Path | None, target_id: str, tenant: str | None) -> EffectiveDefaults:
    """The orchestrator's terms, from this policy file or that of its settings. Raises PresiftError, also for a tenant
    where no file says what it gets."""
    settings = _settings()
    if policy_file is not None:
        settings = settings.model_copy(update={"policy_file": policy_file})
    if tenant is not None and settings.policy_file is None:
        raise PresiftError(
            f"--tenant selects defaults of a policy file, and there is none here: --policy FILE ({_ENV})"
        )
    return policy_source(settings).table.lookup(tokens, target_id, tenant)


def policy_note(info: Info, policy_file: Path | None) -> str | None:
    """What is to be said where the orchestrator's requests have another policy file's defaults than this table."""
    here = policy_file or _settings().policy_file
    if info.policy_file is None or policy_file is not None:
        return None
    if here is not None and here.is_file() and hashlib.sha256(here.read_bytes()).hexdigest() == info.policy_file.digest:
        return None
    there = f"the orchestrator has a policy file in force (sha256 {info.policy_file.digest[:12]}...)"
    ours = "this table knows none" if here is None else f"this table has another one ({here})"
    return f"note: {there}, and {ours}: its requests may get other defaults; give it with --policy FILE"


def behind(info: Info) -> Behind:
    """A running orchestrator's models, and the speeds that it has learnt with them."""
    supported = frozenset(route for route in Route if route.value in info.supported_routes)
    speeds = _speeds(info.speeds, info.draft, info.target)
    draft, target = info.draft, info.target
    # With another vocabulary the draft counts other tokens.
    is_shared = draft is not None and draft.tokenizer_fingerprint == target.tokenizer_fingerprint
    draft_context_tokens = draft.context_tokens if draft is not None and is_shared else 0
    return Behind(target.context_tokens, speeds, supported, info.compress_above_tokens, target.id, draft_context_tokens)


def outcome(terms: EffectiveDefaults, budget: Budget, prompt: Prompt, behind: Behind) -> Outcome:
    """What AUTO makes of a prompt without protected spans, at these terms."""
    defaults, budget = terms.defaults, terms.complete_budget(budget)
    if behind.compress_above_tokens is not None:
        defaults = replace(defaults, compress_above_tokens=behind.compress_above_tokens)
    cached_tokens = min(prompt.cached_prefix, prompt.tokens)
    state = SystemState(behind.speeds, cached_tokens=cached_tokens, prefills=_settings().prefill_while_drafting)
    inputs = _inputs(defaults, budget, state, prompt, behind)
    table = candidates(inputs)
    choice, refusal = None, ""
    try:
        choice = choose(inputs)
    except PresiftError as error:
        refusal = error.message
    routes = routes_to_wire(table, None if choice is None else choice.route)
    return Outcome(tuple(route_of(each) for each in routes), choice, refusal)


def _settings() -> OrchestratorSettings:
    return OrchestratorSettings(_cli_parse_args=False)  # type: ignore[call-arg]


def _inputs(defaults: Defaults, budget: Budget, state: SystemState, prompt: Prompt, behind: Behind) -> RoutingInputs:
    return RoutingInputs(
        prompt_tokens=prompt.tokens,
        must_keep=min(prompt.tokens, defaults.spec_pc.window),
        must_keep_kv=min(prompt.tokens - 1, defaults.spec_kv.window),
        max_new_tokens=prompt.max_new_tokens,
        context_tokens=behind.context_tokens,
        supported=behind.supported,
        defaults=defaults,
        budget=budget,
        state=state,
        draft_context_tokens=behind.draft_context_tokens,
    )


def _speeds(learnt: Iterable[StageSpeed], draft: Model | None, target: Model) -> StageCosts:
    """Of these models; of several replicas that which was observed last."""
    names = {f"{model.id}@{model.revision}" for model in (draft, target) if model is not None}
    latest = {speed.stage: speed for speed in learnt if speed.model in names}
    curves, seeds = {stage: _curve(speed) for stage, speed in latest.items()}, StageCosts()
    reading = curves.get("target", seeds.target)
    return StageCosts(
        draft=curves.get("draft", seeds.draft),
        target=reading,
        scoring=curves.get("scoring", scoring_guess(reading)),
        decoding=curves.get("decoding", seeds.decoding),
        contention=max((speed.contention for speed in latest.values()), default=0.0),
    )


def _curve(speed: StageSpeed) -> CostCurve:
    return CostCurve(speed.call_ms, speed.token_ms, speed.megapair_ms, speed.step_ms, speed.observations)
