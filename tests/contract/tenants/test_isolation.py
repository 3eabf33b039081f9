"""Two tenants with the same prompt share nothing: no compressed prompt, no KV, no turn, no memory of any kind."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from presift.cache.memory_store import MemoryStore
from presift.cache.store import CacheLimits
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.request import Request, TokenIds
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.routing.quality_gate import Thresholds
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.api_keys import ACME, ACME_TOO, OTHER, bearer, key_authenticator
from ..fakes.stack import ALL_ROUTES, Answer, request, wire_prompt

LONG, LATER = list(range(100, 200)), list(range(100, 220))
KV = plan_pb2.ROUTE_SPEC_KV
SALTS = {tenant: Caller(tenant, authenticated=True).salt("deployment") for tenant in ("acme", "other")}


@pytest.fixture
async def stack(open_stack):
    return await open_stack(**options())


def options(**more):
    return {
        "auth_interceptors": (AuthInterceptor(key_authenticator()),),
        "salt": "deployment",
        "routes": ALL_ROUTES,
    } | more


async def ask(stack, key, prompt=LONG, metadata=(), **wanted):
    call = stack.stub.Generate(request(prompt, **wanted), metadata=bearer(key, *metadata))
    return Answer.of([event async for event in call])


async def test_the_second_tenant_misses_and_the_second_key_of_the_first_hits(stack):
    assert [(await ask(stack, key)).cache for key in (ACME, OTHER, ACME, ACME_TOO, OTHER)] == [
        "MISS",
        "MISS",
        "HIT",
        "HIT",
        "HIT",
    ]
    assert len(stack.draft.calls) == 2
    for calls in (stack.draft.calls, stack.target.calls):
        assert {call.cache_salt for call in calls} == set(SALTS.values())


async def test_one_store_and_two_orchestrators_are_no_way_round(open_stack):
    store = MemoryStore(CacheLimits())
    first, second = [await open_stack(**options(store=store)) for _ in range(2)]
    await ask(first, ACME)
    assert (await ask(second, ACME)).cache == "HIT"
    assert (await ask(second, OTHER)).cache == "MISS"


async def test_other_deployments_on_the_same_cache_share_nothing(open_stack):
    store = MemoryStore(CacheLimits())
    first, second = [await open_stack(**options(store=store, salt=salt)) for salt in ("one", "two")]
    await ask(first, ACME)
    assert (await ask(second, ACME)).cache == "MISS"


async def test_simultaneous_requests_share_a_pass_within_a_tenant_alone(stack):
    stack.target.pause_after = None
    answers = await asyncio.gather(*(ask(stack, key) for key in (ACME, ACME_TOO, OTHER, OTHER)))
    assert sorted(answer.cache for answer in answers) == ["MISS", "MISS", "SHARED", "SHARED"]
    assert len(stack.draft.calls) == 2


async def test_a_salt_that_is_played_back_is_but_a_name(stack):
    """The namespace is made here of who the caller is: nothing that it sends can be one."""
    await ask(stack, ACME)
    played = [((name, SALTS["acme"]),) for name in ("cache-salt", "presift-salt")]
    assert [(await ask(stack, OTHER, metadata=metadata)).cache for metadata in played] == ["MISS", "HIT"]
    assert {call.cache_salt for call in stack.target.calls[1:]} == {SALTS["other"]}


async def test_without_authentication_a_salt_as_a_tenants_name_changes_nothing(open_stack):
    store = MemoryStore(CacheLimits())
    closed = await open_stack(**options(store=store))
    await ask(closed, ACME)
    opened = await open_stack(**options(store=store, auth_interceptors=()))
    call = opened.stub.Generate(request(LONG), metadata=(("presift-tenant", SALTS["acme"]),))
    assert Answer.of([event async for event in call]).cache == "MISS"
    assert opened.target.calls[0].cache_salt == "deployment"


async def test_kv_entries_and_readings_are_a_tenants_own(stack):
    first, second = await ask(stack, ACME, route=KV), await ask(stack, OTHER, route=KV)
    again = await ask(stack, ACME_TOO, route=KV)
    assert (first.usage.reused_entry, second.usage.reused_entry, again.usage.reused_entry) == (False, False, True)
    assert second.usage.cached_tokens == first.usage.cached_tokens
    assert [call.cache_salt for call in stack.target.prefills] == [SALTS["acme"], SALTS["other"]]


async def test_no_turn_of_another_tenant_is_gone_on_with(stack):
    await ask(stack, ACME, route=KV)
    going_on = {"route": KV, "kv": {"continue_prompt_tokens": 100}}
    theirs, ours = await ask(stack, OTHER, LATER, **going_on), await ask(stack, ACME_TOO, LATER, **going_on)
    assert (theirs.decision.continued, ours.decision.continued) == (False, True)


async def test_explain_asks_in_the_tenants_namespace(stack):
    await ask(stack, ACME, route=KV)
    wanted = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=KV, include_kv_mask=True)
    await stack.stub.Explain(wanted, metadata=bearer(OTHER))
    await stack.stub.Explain(wanted, metadata=bearer(OTHER))  # found: so asked anew, in a namespace of its own
    salts = [call.cache_salt for call in stack.target.calls[1:]]
    assert all(salt.startswith(SALTS["other"]) for salt in salts) and len(salts) == 3


async def test_what_the_targets_cache_holds_is_expected_for_its_tenant_alone(open_stack):
    estimator, long = CostEstimator(learns=False), list(range(100, 360))
    stack = await open_stack(**options(estimator=estimator))
    await ask(stack, ACME, long, route=plan_pb2.ROUTE_FULL)
    ids, target = np.array(long, dtype=np.uint32), stack.models.target.model
    held = {
        name: estimator.state(ids, target, None, salt=salt).cached_tokens
        for name, salt in (*SALTS.items(), ("nobody", "deployment"), ("none", ""))
    }
    assert held == {"acme": 256, "other": 0, "nobody": 0, "none": 0}


async def test_compressed_prompts_are_predicted_for_their_tenant_alone(open_stack):
    estimator = CostEstimator(learns=False)
    stack = await open_stack(**options(estimator=estimator))
    await ask(stack, ACME)
    ids, target = np.array(LONG, dtype=np.uint32), stack.models.target.model
    known = {tenant: len(estimator.state(ids, target, None, salt=salt).compressed) for tenant, salt in SALTS.items()}
    assert known == {"acme": 1, "other": 0}


async def test_the_quality_guard_answers_in_the_tenants_namespace(open_stack):
    stack = await open_stack(**options(sampler=Sampler(1.0)))
    for compared, key in enumerate((ACME, OTHER), 1):
        await ask(stack, key)
        await stack.settle(lambda n=compared: sum(each.samples for each in stack.guard.qualities()) == n)
    salts = [call.cache_salt for call in stack.target.calls]
    assert salts == [SALTS["acme"]] * 2 + [SALTS["other"]] * 2


async def test_a_route_that_is_off_for_one_tenant_serves_the_other(open_stack):
    stack = await open_stack(**options(sampler=Sampler(1.0), thresholds=Thresholds(least_samples=3, window=6)))
    stack.target.answer = lambda asked: [7] * 50 if asked.HasField("kv_plan") else asked.token_ids[::-1]
    for first in range(3):
        await ask(stack, ACME, [first, *LONG], route=KV)
        await stack.settle(lambda n=first: [each.samples for each in stack.guard.qualities()] in ([n + 1], [0]))
    answers = [await ask(stack, key, route=KV) for key in (ACME, OTHER)]
    assert [answer.route for answer in answers] == ["FULL", "SPEC_KV"]


async def test_what_was_tokenised_is_remembered_for_its_tenant_alone(stack):
    text = "The same document for everybody. " * 4
    for key in (ACME, OTHER, ACME_TOO):
        await ask(stack, key, text)
    memory = stack.tokenizer._memory
    assert len(memory) == 2 and {tokens.salt for tokens in memory.values()} == set(SALTS.values())


def test_fields_that_say_whose_it_is_are_not_shown():
    shown = repr(replace(Request(TokenIds(np.array([1], np.uint32))), salt="xylophone"))
    assert "xylophone" not in shown
