"""The draft can answer every request with an adaptive capacity, and the orchestrator accepts its answer."""

import numpy as np
import pytest

from presift.core.kv_plan import check_plan
from presift.core.plan import CompressedPrompt, Route
from presift.core.policies import KvSelection, SpecKv, SpecPc
from presift.core.spans import Span, must_keep, must_keep_kv
from presift.draft.compress import compress
from presift.draft.request import RequestLimits, parse
from presift.draft.scorer import Cancel
from presift.orchestrator.domain.request import AutoCapacity, Budget, TokenizedPrompt
from presift.orchestrator.planning.mask_validation import ScoringJob, check_prompt
from presift.orchestrator.planning.plan_builder import kv_plan_of
from presift.orchestrator.routing.choice import Defaults, RouteChoice
from presift.orchestrator.routing.cost_model import SystemState
from presift.orchestrator.routing.router import choose
from presift.rpc import codec
from presift.v1 import draft_pb2

from ...builders import routing_inputs

N = 200
SPANS = (Span(0, 7), Span(150, 160))
DEFAULTS = Defaults(
    SpecPc(90, window=8, lookahead_tokens=3, start_layer=2), 0, spec_kv=SpecKv(64, window=8), cascade_capacity=120
)
LOOKAHEAD, MASK = KvSelection


def routed(route: Route, selection: KvSelection, budget: Budget, page: int) -> RouteChoice:
    inputs = routing_inputs(
        prompt_tokens=N,
        must_keep=int(must_keep(SPANS, N, 8).sum()),
        must_keep_kv=int(must_keep_kv(SPANS, N, 8).sum()),
        reserved_tokens=16,
        context_tokens=1024,
        kv_page_tokens=page,
        defaults=DEFAULTS,
        wanted=route,
        budget=budget,
        selection=selection,
        state=SystemState(),
    )
    return choose(inputs)


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("coverage", [0.05, 0.2, 0.45, 1.0])
@pytest.mark.parametrize(
    ("route", "selection"),
    [(Route.SPEC_PC, LOOKAHEAD), (Route.SPEC_KV, LOOKAHEAD), (Route.SPEC_KV, MASK), (Route.SPEC_KV_PC, LOOKAHEAD)],
)
def test_requests_are_answered_accepted_and_applied(route, selection, coverage, page, tiny_scorer, prompt):  # noqa: PLR0917
    scorer, ids = tiny_scorer("tinyq", 64), prompt(N)
    choice = routed(route, selection, Budget(auto_capacity=AutoCapacity(coverage)), page)
    tokens = TokenizedPrompt(ids, SPANS)
    policy = choice.policy
    asked = draft_pb2.ScoreRequest(
        token_ids=ids.tolist(), policy=codec.policy_to_wire(policy), protected_spans=codec.spans_to_wire(SPANS)
    )
    found = compress(scorer, parse(asked, RequestLimits(scorer.info, 256)), Cancel())
    lookahead = found.scored.lookahead_token_ids
    answer = CompressedPrompt(found.mask, lookahead, found.coverage, scorer.info, found.kv_capacity)
    check_prompt(answer, ScoringJob(tokens, policy, scorer.info, scorer.info))
    plan = kv_plan_of(choice, answer, tokens)
    if plan is not None:
        read_tokens = N if route is Route.SPEC_KV else found.mask.kept_tokens
        kept = check_plan(plan, read_tokens, layers=4, kv_heads=2, page_tokens=page)
        assert kept % page == 0 and kept <= 64
        assert (kept == 64) or coverage < 1.0
    assert found.coverage is None or found.coverage >= np.float32(coverage) or found.mask.kept_tokens in (65, 90, 120)


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("route", [Route.SPEC_KV, Route.SPEC_KV_PC])
def test_min_coverage_makes_the_draft_report_the_coverage_of_a_fixed_capacity(route, page, tiny_scorer, prompt):
    """Mask and KV are the same as without it."""
    scorer, ids = tiny_scorer("tinyq", 64), prompt(N)
    found = {}
    for least in (None, 0.5):
        choice = routed(route, LOOKAHEAD, Budget(min_coverage=least), page)
        policy = choice.policy
        asked = draft_pb2.ScoreRequest(
            token_ids=ids.tolist(), policy=codec.policy_to_wire(policy), protected_spans=codec.spans_to_wire(SPANS)
        )
        made = compress(scorer, parse(asked, RequestLimits(scorer.info, 256)), Cancel())
        lookahead = made.scored.lookahead_token_ids
        answer = CompressedPrompt(made.mask, lookahead, made.coverage, scorer.info, made.kv_capacity, made.kv_coverage)
        tokens = TokenizedPrompt(ids, SPANS)
        check_prompt(answer, ScoringJob(tokens, policy, scorer.info, scorer.info))
        found[least] = made, kv_plan_of(choice, answer, tokens)
    (plain, plan), (measured, same) = found.values()
    assert same == plan and (measured.mask.kept == plain.mask.kept).all()
    assert (plain.kv_capacity, plain.kv_coverage) == (None, None)
    assert measured.kv_capacity == 64 and 0.0 < measured.kv_coverage < 1.0
