"""Tenants: whose defaults apply, as the decision shows; through both clients."""

import asyncio
from dataclasses import replace

import pytest

from presift.orchestrator.config.overrides import Override, OverrideBand, OverrideLevel, OverrideRules, OverrideTable
from presift.orchestrator.config.reload import PolicySource
from presift.v1 import orchestrator_pb2
from presift_client import AsyncClient, BudgetExceeded, Client, InvalidRequest

from ..fakes.stack import ALL_ROUTES, CAPACITY, DEFAULTS, THRESHOLD, refusal_of, request, wire_prompt

LONG = list(range(100, 200))


def build(changes):
    spec_pc = replace(DEFAULTS.spec_pc, capacity=changes.get("capacity", CAPACITY))
    return replace(
        DEFAULTS,
        spec_pc=spec_pc,
        compress_above_tokens=changes.get("compress_above_tokens", DEFAULTS.compress_above_tokens),
    )


RULES = OverrideRules(
    OverrideLevel(bands=(OverrideBand(60, Override({"compress_above_tokens": 50})), OverrideBand(None, Override()))),
    {"target": OverrideLevel(Override({"capacity": 18}))},
    {
        "acme": OverrideLevel(Override({"capacity": 20})),
        "lavish": OverrideLevel(Override({"compress_above_tokens": 300})),
        "frugal": OverrideLevel(Override(budget={"max_prompt_tokens": 12, "strict": True})),
        "doubting": OverrideLevel(Override({"capacity": 20}, {"min_coverage": 1.0})),
    },
)


@pytest.fixture
async def stack(open_stack):
    return await open_stack(terms=PolicySource(OverrideTable(build, RULES)), routes=ALL_ROUTES)


async def ask(stack, prompt, tenant=None, **options):
    async with AsyncClient(stack.address, tenant=tenant) as client:
        return (await client.generate(token_ids=prompt, max_new_tokens=5, **options)).decision


async def test_defaults_of_model_and_tenant(stack):
    kept = {tenant: (await ask(stack, LONG, tenant)).kept_tokens for tenant in (None, "unknown", "acme")}
    assert kept == {None: 18, "unknown": 18, "acme": 20}
    assert (await ask(stack, LONG, "acme", max_prompt_tokens=17)).kept_tokens == 17


async def test_the_decision_has_the_threshold_of_the_band(stack):
    decision = await ask(stack, LONG[:50])
    assert (decision.reason, decision.detail) == ("below_threshold", "50 prompt tokens, compressed above 50")
    assert (await ask(stack, LONG[:51])).route == "spec_pc"
    decision = await ask(stack, LONG, "lavish")
    assert (decision.route, decision.detail) == ("full", "100 prompt tokens, compressed above 300")
    assert (await ask(stack, LONG, "lavish", compress_above_tokens=0)).route == "spec_pc"


async def test_a_default_budget_is_as_if_sent(stack):
    assert (await ask(stack, LONG, "frugal")).kept_tokens == 12
    with pytest.raises(BudgetExceeded, match="over the budget of 12"):  # strict is the file's
        await ask(stack, LONG, "frugal", route="full")
    assert (await ask(stack, LONG, route="full")).route == "full"
    decision = await ask(stack, LONG, "doubting")
    assert decision.reason == "coverage_too_low"


async def test_explain_has_the_same_terms(stack):
    async with AsyncClient(stack.address, tenant="acme") as client:
        explained = await client.explain(token_ids=LONG)
    assert explained.decision.kept_tokens == 20


async def test_the_blocking_client_sends_it_too(stack):
    with Client(stack.address, tenant="acme") as client:
        answer = await asyncio.to_thread(client.generate, token_ids=LONG, max_new_tokens=5)
        explained = await asyncio.to_thread(client.explain, token_ids=LONG)
    assert answer.decision.kept_tokens == explained.decision.kept_tokens == 20


async def test_tenants_share_nothing_but_defaults(stack):
    """It is no authentication: the same prompt and policy is the same compressed prompt, whoever asks."""
    await ask(stack, LONG, "acme")
    assert (await ask(stack, LONG, "acme")).cache == "hit"
    assert (await ask(stack, LONG, max_prompt_tokens=20)).cache == "hit"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a" * 65, "-" * 64 + ";"])
async def test_a_name_that_cannot_be_is_refused(stack, name):
    with pytest.raises(InvalidRequest) as refused:
        await ask(stack, LONG, name)
    assert refused.value.field == "presift-tenant" and "1-64" in refused.value.limit
    async with AsyncClient(stack.address, tenant=name) as client:
        with pytest.raises(InvalidRequest):
            await client.explain(token_ids=LONG)
    assert stack.target.calls == stack.draft.calls == []


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "9" * 64])
async def test_names_that_can_be(stack, name):
    assert (await ask(stack, LONG, name)).kept_tokens == 18


async def test_two_names_are_refused(stack):
    metadata = (("presift-tenant", "acme"), ("presift-tenant", "frugal"))
    refusal = await refusal_of(stack.stub.Explain(_explain(), metadata=metadata))
    assert (refusal.code, refusal.field, refusal.value) == ("INVALID_ARGUMENT", "presift-tenant", "given 2 times")
    call = stack.stub.Generate(request(LONG), metadata=metadata)
    assert (await refusal_of(call.read())).field == "presift-tenant"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("name", ["näme", "a\nb"])
def test_the_client_rejects_an_invalid_tenant_name(kind, name):
    with pytest.raises(ValueError, match="tenant is"):
        kind("127.0.0.1:1", tenant=name)


async def test_info_says_what_is_never_compressed(stack):
    async with AsyncClient(stack.address) as client:
        info = await client.info()
    assert (info.compress_above_tokens, info.policy_file) == (50, None)
    assert THRESHOLD < 50


def _explain():
    return orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG))
