"""Values that many tests need: routing defaults, costs and inputs with round numbers."""

from dataclasses import fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from presift.core.masks import TokenMask
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecKv, SpecPc
from presift.core.spans import Span
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.request_context import RequestContext
from presift.orchestrator.routing.choice import Defaults, RoutingInputs
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts, SystemState

FULL, PC, KV, KV_PC = Route.FULL, Route.SPEC_PC, Route.SPEC_KV, Route.SPEC_KV_PC
DEFAULTS = Defaults(SpecPc(100, window=10), 400, spec_kv=SpecKv(50, window=8, lookahead_tokens=5), cascade_capacity=200)
# 1 ms a token for the draft, 10 for the target, nothing else.
COSTS = StageCosts(
    draft=CostCurve(0.0, 1.0, 0.0, observations=1),
    target=CostCurve(0.0, 10.0, 0.0, observations=1),
    selection=CostCurve(0.0, 0.0, 0.0),
)
INPUTS = RoutingInputs(
    prompt_tokens=1000,
    must_keep=10,
    must_keep_kv=8,
    reserved_tokens=50,
    context_tokens=2000,
    supported=frozenset(Route),
    defaults=DEFAULTS,
    state=SystemState(COSTS),
)


MODEL = ModelInfo("m", "r", "f", 2000, 2, 2, 100)


def routing_inputs(base: RoutingInputs = INPUTS, /, **changes) -> RoutingInputs:
    """`base` with other values, named by a field of the inputs or of their budget, options or state."""
    for part in ("budget", "options", "state"):
        value = changes.get(part, getattr(base, part))
        named = changes.keys() & {field.name for field in fields(value)}
        changes[part] = replace(value, **{name: changes.pop(name) for name in named})
    return replace(base, **changes)


def token_mask(kept: ArrayLike, prompt_tokens: int) -> TokenMask:
    """The mask of a prompt that keeps these tokens."""
    return TokenMask(np.isin(np.arange(prompt_tokens), kept))


def request_context(
    ids: NDArray[np.uint32], protected: tuple[Span, ...] = (), target: ModelInfo = MODEL
) -> RequestContext:
    """The context of a prompt of these token ids."""
    inputs = routing_inputs(prompt_tokens=int(ids.size))
    return RequestContext(TokenizedPrompt(ids, protected), target, inputs, MODEL, tokenize_ms=1.0)
