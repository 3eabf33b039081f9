"""`presift route`: the predicted cost of every route, and AUTO's choice. No model runs.

The orchestrator's own code predicts and chooses, so the table cannot disagree with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from presift.cli.flags import BudgetFlags, TokenLimitFlags
from presift.cli.render import forecasts
from presift.core.errors import PresiftError
from presift.core.generation import Sampling
from presift.core.plan import Route
from presift.orchestrator.api.grpc.forecasts import routes_to_wire
from presift.orchestrator.config.overrides import EffectiveDefaults
from presift.orchestrator.config.reload import policy_source
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import AutoCapacity, Budget
from presift.orchestrator.planning.answer_length import reserved_tokens
from presift.orchestrator.routing.candidates import candidates
from presift.orchestrator.routing.choice import RouteChoice, RoutingInputs
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts, SystemState, selection_guess
from presift.orchestrator.routing.router import choose
from presift_client import Info, Model, RouteForecast, StageSpeed
from presift_client.forecasts import route_of

_CONTEXT_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class Prompt:
    """The request, in tokens: the prompt, its part in the target's cache, and the longest answer."""

    tokens: int
    cached_prefix: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """What predictions need to know about draft and target; by default the demo pair on two CPU cores.

    `compress_above_tokens` is None if the settings or the policy file decide. `draft_context_tokens` is 0 if unknown.
    `is_calibrated` says whether the draft has a head profile, `has_draft` whether there is one.
    """

    context_tokens: int = _CONTEXT_TOKENS
    speeds: StageCosts = StageCosts()  # noqa: RUF009 (frozen)
    supported: frozenset[Route] = frozenset(Route)
    compress_above_tokens: int | None = None
    target_id: str = ""
    draft_context_tokens: int = 0
    is_calibrated: bool = True
    has_draft: bool = True

    def overridden(self, context_tokens: int | None, *, has_policy_file: bool) -> Deployment:
        """With another context if one is given, and without the orchestrator's threshold if a policy file is given."""
        return replace(
            self,
            context_tokens=self.context_tokens if context_tokens is None else context_tokens,
            compress_above_tokens=None if has_policy_file else self.compress_above_tokens,
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """The table and the choice, or None and the error that a caller would get."""

    routes: tuple[RouteForecast, ...]
    choice: RouteChoice | None
    refusal: str = ""

    def as_json(self) -> dict[str, Any]:
        """The table, and route, reason and detail of the choice; without a choice the detail is the refusal."""
        choice = self.choice
        return {
            "routes": [asdict(each) for each in self.routes],
            "route": None if choice is None else choice.route.value,
            "reason": None if choice is None else choice.reason.value,
            "detail": self.refusal if choice is None else choice.detail,
        }

    def show(self, console: Console) -> None:
        """Print the table with the choice marked, and the reason."""
        forecasts.show(self.routes, console)
        if self.choice is None:
            console.print(Text(f"refused: {self.refusal}"))
        else:
            console.print(Text(f"{self.choice.route}: {self.choice.reason} ({self.choice.detail})"))


def budget_of(flags: BudgetFlags) -> Budget:
    """The budget of these flags. Raises InvalidRequest."""
    return replace(
        token_budget(flags),
        max_ttft_ms=flags.max_ttft_ms,
        strict=flags.strict,
        auto_capacity=None if flags.auto_coverage is None else AutoCapacity(flags.auto_coverage),
    )


def token_budget(flags: TokenLimitFlags) -> Budget:
    """The budget of the limits in tokens. Raises InvalidRequest."""
    return Budget(
        max_prompt_tokens=flags.max_prompt_tokens,
        max_kv_tokens=flags.max_kv_tokens,
        compress_above_tokens=flags.compress_above,
    )


def defaults_for(tokens: int, policy_file: Path | None, target_id: str, tenant: str | None) -> EffectiveDefaults:
    """The orchestrator's defaults for a prompt, from this policy file or else that of its settings.

    Raises PresiftError, also if a tenant is given without a policy file.
    """
    settings = _settings()
    if policy_file is not None:
        settings = settings.model_copy(update={"policy_file": policy_file})
    if tenant is not None and settings.policy_file is None:
        raise PresiftError("--tenant needs a policy file: give --policy FILE or set PRESIFT_ORCHESTRATOR_POLICY_FILE")
    return policy_source(settings).table.lookup(tokens, target_id, tenant)


def policy_file_warning(info: Info, policy_file: Path | None) -> str | None:
    """A warning if the orchestrator uses a policy file that this table does not, unless `policy_file` is given."""
    if info.policy_file is None or policy_file is not None:
        return None
    local = _settings().policy_file
    digest = info.policy_file.digest
    if local is not None and local.is_file() and hashlib.sha256(local.read_bytes()).hexdigest() == digest:
        return None
    here = "this table uses none" if local is None else f"this table uses another one ({local})"
    return (
        f"warning: the orchestrator uses a policy file (sha256 {digest[:12]}...), but {here}, so its requests may get "
        "other defaults; give the file with --policy FILE"
    )


def restricted_warning(info: Info) -> str | None:
    """A warning if the orchestrator shows its learned speeds to administrators only, and this caller is none."""
    if not info.restricted:
        return None
    return (
        "warning: the orchestrator shows its learned speeds only to an admin key, so these are built-in guesses; set "
        "PRESIFT_API_KEY or --api-key-file to one"
    )


def deployment_of(info: Info) -> Deployment:
    """The models of a running orchestrator, and the speeds that it has learned."""
    draft, target = info.draft, info.target
    # Token counts of a draft with another vocabulary cannot be compared.
    is_shared = draft is not None and draft.tokenizer_fingerprint == target.tokenizer_fingerprint
    return Deployment(
        context_tokens=target.context_tokens,
        speeds=_speeds(info.speeds, draft, target),
        supported=frozenset(route for route in Route if route.value in info.supported_routes),
        compress_above_tokens=info.compress_above_tokens,
        target_id=target.id,
        draft_context_tokens=draft.context_tokens if draft is not None and is_shared else 0,
        is_calibrated=draft is not None and bool(draft.head_profile),
        has_draft=draft is not None,
    )


def predict(effective: EffectiveDefaults, budget: Budget, prompt: Prompt, deployment: Deployment) -> Prediction:
    """The table and AUTO's choice for a prompt without protected spans."""
    inputs = _inputs(effective, budget, prompt, deployment)
    choice, refusal = None, ""
    try:
        choice = choose(inputs)
    except PresiftError as error:
        refusal = error.message
    routes = routes_to_wire(candidates(inputs), None if choice is None else choice.route)
    return Prediction(tuple(route_of(each) for each in routes), choice, refusal)


def _settings() -> OrchestratorSettings:
    return OrchestratorSettings(_cli_parse_args=False)  # type: ignore[call-arg]


def _inputs(effective: EffectiveDefaults, budget: Budget, prompt: Prompt, deployment: Deployment) -> RoutingInputs:
    defaults = effective.defaults
    if deployment.compress_above_tokens is not None:
        defaults = replace(defaults, compress_above_tokens=deployment.compress_above_tokens)
    if not deployment.is_calibrated:
        defaults = replace(defaults, calibrated=None)
    must_keep, answer = min(prompt.tokens, defaults.spec_pc.window), Sampling(max_new_tokens=prompt.max_new_tokens)
    return RoutingInputs(
        prompt_tokens=prompt.tokens,
        must_keep=must_keep,
        must_keep_kv=min(prompt.tokens - 1, defaults.spec_kv.window),
        reserved_tokens=reserved_tokens(answer, prompt.tokens, must_keep, deployment.context_tokens),
        context_tokens=deployment.context_tokens,
        supported=deployment.supported,
        defaults=defaults,
        budget=effective.complete_budget(budget),
        state=SystemState(
            deployment.speeds,
            cached_tokens=min(prompt.cached_prefix, prompt.tokens),
            prefills=_settings().prefill_while_drafting,
        ),
        draft_context_tokens=deployment.draft_context_tokens,
        draft_looks_ahead=deployment.has_draft,
    )


def _speeds(learned: Iterable[StageSpeed], draft: Model | None, target: Model) -> StageCosts:
    """The learned speeds of these models; of several replicas, the one that was observed last."""
    names = {f"{model.id}@{model.revision}" for model in (draft, target) if model is not None}
    latest = {speed.stage: speed for speed in learned if speed.model in names}
    curves, seeds = {stage: _curve(speed) for stage, speed in latest.items()}, StageCosts()
    reading = curves.get("target", seeds.target)
    return StageCosts(
        draft=curves.get("draft", seeds.draft),
        target=reading,
        selection=curves.get("scoring", selection_guess(reading)),
        decoding=curves.get("decoding", seeds.decoding),
        contention=max((speed.contention for speed in latest.values()), default=0.0),
        early_renewals=max((speed.early_renewals for speed in latest.values()), default=0.0),
    )


def _curve(speed: StageSpeed) -> CostCurve:
    return CostCurve(speed.call_ms, speed.token_ms, speed.megapair_ms, speed.step_ms, speed.observations)
