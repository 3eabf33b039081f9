"""Settings of routes and policies, and the defaults that they make for a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from presift.core.errors import InvalidRequest
from presift.core.kv_plan import MAX_KERNEL_TOKENS
from presift.core.limits import MAX_LOOKAHEAD_TOKENS
from presift.core.plan import Route
from presift.core.policies import Heads, KvSelection, Pool, Reduction, SpecKv, SpecPc
from presift.orchestrator.domain.request import AutoCapacity, KvLookahead
from presift.orchestrator.routing.choice import ROUTE_ORDER, Defaults, value_or

# The lookahead of drafts that score by all heads.
_LOOKAHEAD_TOKENS = 8


class RouteSettings(BaseModel):
    """Routes and the policy file"""

    policy_file: Annotated[
        Path | None,
        Field(description="YAML: defaults by prompt length, model and tenant; reloaded on SIGHUP"),
    ] = None
    compress_above_tokens: Annotated[
        int, Field(ge=0, description="prompts of up to this many tokens are never compressed")
    ] = 4096
    route_order: Annotated[
        str, Field(description="routes that AUTO may take, least lossy first, comma-separated; must include full")
    ] = ",".join(ROUTE_ORDER)
    auto_coverage: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="keep the fewest tokens that cover this share of the importance, up to the capacities below",
        ),
    ] = None


class PromptPolicySettings(BaseModel):
    """Prompt compression (spec_pc)"""

    capacity: Annotated[int, Field(ge=1, description="prompt tokens to keep if the request sets no budget")] = 1024
    window: Annotated[
        int, Field(ge=1, description="last prompt tokens, always kept; their queries score the other tokens")
    ] = 32
    pool: Annotated[Pool, Field(description="smoothing of the importance along the prompt")] = Pool.MEAN
    kernel: Annotated[int, Field(ge=1, description="pooling width, tokens")] = 7
    neighbors: Annotated[int, Field(ge=0, description="tokens kept around each peak of importance")] = 16
    heads: Annotated[
        Heads,
        Field(
            description="calibrated: the draft's head profile, if any, scores capacities of 512 and more; all: never"
        ),
    ] = Heads.CALIBRATED
    start_layer: Annotated[
        int | None,
        Field(ge=0, description="score by all heads from this draft layer on; from the middle layer if unset"),
    ] = None
    lookahead_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="1 scores by the prompt only; m adds the queries of m - 1 generated tokens; if unset, 1 with "
            "calibrated heads, else 8",
        ),
    ] = None


class KvPolicySettings(BaseModel):
    """KV dropping (spec_kv, spec_kv_pc)"""

    kv_capacity: Annotated[
        int, Field(ge=1, description="KV tokens to keep besides the final one if the request sets no budget")
    ] = 512
    cascade_capacity: Annotated[int, Field(ge=1, description="prompt tokens that spec_kv_pc keeps first")] = 2048
    kv_selection: Annotated[
        KvSelection, Field(description="whose queries select the KV on spec_kv: the target's or the draft's")
    ] = KvSelection.TARGET_LOOKAHEAD
    kv_lookahead_tokens: Annotated[
        int,
        Field(ge=0, le=MAX_LOOKAHEAD_TOKENS, description="tokens that the draft generates for the target's selection"),
    ] = 24
    kv_lookahead: Annotated[
        KvLookahead,
        Field(
            description="who generates the tokens for the target's selection: draft; target: the answer begins on the "
            "full KV, and spec_kv needs no draft; auto: the target where no draft can or where it is sooner"
        ),
    ] = KvLookahead.AUTO
    kv_first_full_tokens: Annotated[
        int,
        Field(ge=1, description="tokens generated on the full KV before the selection, with the target's lookahead"),
    ] = 16
    kv_renew_every: Annotated[
        int, Field(ge=0, description="select KV anew after so many generated tokens at the latest; 0: select once")
    ] = 12
    kv_renew_window: Annotated[
        int, Field(ge=1, description="newest tokens whose queries select KV anew, at most what the capacity leaves")
    ] = 32
    kv_window: Annotated[int, Field(ge=1, description="last prompt tokens whose KV is always kept")] = 32
    kv_pool: Annotated[Pool, Field(description="smoothing of the KV importance along the prompt")] = Pool.MAX
    kv_kernel: Annotated[
        int, Field(ge=1, le=MAX_KERNEL_TOKENS, description="pooling width of the KV importance, tokens; odd")
    ] = 7
    kv_reduction: Annotated[
        Reduction, Field(description="how the rows and heads of a group are reduced to one number")
    ] = Reduction.MAX
    prefill_while_drafting: Annotated[
        bool,
        Field(description="start the target's prefill while the draft works; no gain if both share a device"),
    ] = True
    turn_memory_mib: Annotated[
        int, Field(ge=0, description="MiB of memory for KV selections that later turns continue")
    ] = 64


class PolicySettings(RouteSettings, PromptPolicySettings, KvPolicySettings):
    """Everything that decides the defaults of a request."""


def policy_defaults(policies: PolicySettings, changes: Mapping[str, Any] | None = None) -> Defaults:
    """The defaults, with the settings named in `changes` replaced; their values must have the settings' types.

    Raises InvalidRequest for settings that contradict each other. In a policy file any keys go together, because its
    parts are combined for each request: there the target's lookahead gives way.
    """
    if changes is None:
        _check_lookahead(policies)
    settings = policies.model_copy(update=changes)
    return Defaults(
        _spec_pc(settings),
        settings.compress_above_tokens,
        settings.start_layer,
        _spec_kv(settings),
        settings.cascade_capacity,
        _routes(settings.route_order),
        None if settings.auto_coverage is None else AutoCapacity(settings.auto_coverage),
        _calibrated(settings),
        settings.kv_lookahead,
        settings.kv_first_full_tokens,
        settings.kv_renew_every,
        settings.kv_renew_window,
    )


def _check_lookahead(settings: PolicySettings) -> None:
    """Raises InvalidRequest if the target's lookahead could never be made."""
    if settings.kv_lookahead is not KvLookahead.TARGET:
        return
    if settings.kv_selection is KvSelection.DRAFT_MASK:
        _refuse_target_lookahead(f"kv_selection {settings.kv_selection}")
    if settings.auto_coverage is not None:
        _refuse_target_lookahead(f"auto_coverage {settings.auto_coverage:g}")


def _refuse_target_lookahead(other: str) -> None:
    raise InvalidRequest("kv_lookahead", KvLookahead.TARGET, f"{KvLookahead.DRAFT} or {KvLookahead.AUTO} with {other}")


def _spec_pc(settings: PromptPolicySettings) -> SpecPc:
    return SpecPc(
        capacity=settings.capacity,
        window=settings.window,
        pool=settings.pool,
        kernel=settings.kernel,
        neighbors=settings.neighbors,
        lookahead_tokens=value_or(settings.lookahead_tokens, _LOOKAHEAD_TOKENS),
    )


def _calibrated(settings: PromptPolicySettings) -> SpecPc | None:
    """The policy for drafts with a head profile; None if they score by all heads too."""
    if settings.heads is Heads.ALL or settings.start_layer is not None:
        return None
    return replace(_spec_pc(settings), heads=Heads.CALIBRATED, lookahead_tokens=value_or(settings.lookahead_tokens, 1))


def _spec_kv(settings: KvPolicySettings) -> SpecKv:
    return SpecKv(
        capacity=settings.kv_capacity,
        window=settings.kv_window,
        pool=settings.kv_pool,
        kernel=settings.kv_kernel,
        reduction=settings.kv_reduction,
        lookahead_tokens=settings.kv_lookahead_tokens,
        selection=settings.kv_selection,
    )


def _routes(names: str) -> tuple[Route, ...]:
    """Raises InvalidRequest for an unknown route; it lists the known ones."""
    try:
        return tuple(Route(name.strip()) for name in names.split(","))
    except ValueError:
        raise InvalidRequest("route_order", names, f"of {', '.join(Route)}") from None
