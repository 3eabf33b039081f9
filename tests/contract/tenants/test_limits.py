"""Limits of tenants, counted by two orchestrators in one real Valkey; and what happens while it is unavailable."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from presift.cache.embedded import embedded_cache
from presift.cache.redis_client import CacheUnavailable, RedisClient
from presift.cache.store import CacheLimits
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.admission.concurrency_limit import RedisConcurrencyLimit
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.admission.quotas import FailureMode, Quotas
from presift.orchestrator.admission.request_cost import RequestCost
from presift.orchestrator.api.auth.api_keys import KeyEntry, digest_of, new_key
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.orchestrator.api.auth.key_file import Keys
from presift.orchestrator.domain.caller import TenantLimits
from presift.rpc.deadline import NO_DEADLINE
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.api_keys import ACME, OTHER, bearer, key_authenticator
from ..fakes.stack import refusal_of, request, wire_prompt

PATIENT_S = 5.0  # two cores, shared with other tests
LONG = list(range(100, 200))


@pytest.fixture(scope="module")
def valkey():
    with embedded_cache() as cache:
        yield cache


@pytest.fixture
async def link(valkey):
    link = RedisClient(valkey.url, CacheLimits())
    await link.execute("FLUSHALL", timeout_s=PATIENT_S)
    yield link
    await link.aclose()


@pytest.fixture
async def counts(valkey, link):
    """-> the quotas of one more orchestrator, over its own connections."""
    opened = []

    def counts(url=valkey.url, on_failure=FailureMode.OPEN, timeout_s=PATIENT_S):
        opened.append(open_usage_limits(url, timeout_s, on_failure))
        return opened[-1].quotas

    yield counts
    for each in opened:
        await each.aclose()


@pytest.fixture
def two_stacks(open_stack, counts):
    """limits -> two orchestrators that limit tenant acme, but not tenant other."""

    async def two_stacks(limits, **options):
        auth_interceptors = (AuthInterceptor(key_authenticator({"acme": limits})),)
        return [await open_stack(auth_interceptors=auth_interceptors, quotas=counts(**options)) for _ in range(2)]

    return two_stacks


async def ask(stack, key=ACME, new_tokens=5, choices=1):
    call = stack.stub.Generate(request(LONG, max_new_tokens=new_tokens, choices=choices), metadata=bearer(key))
    return [event async for event in call]


async def test_tokens_per_minute_are_shared(two_stacks):
    first, second = await two_stacks(TenantLimits(tokens_per_minute=250))
    await ask(first)
    await ask(second)
    for stack in (first, second):
        refused = await refusal_of(ask(stack))
        assert (refused.code, refused.reason, refused.field) == (
            "RESOURCE_EXHAUSTED",
            "OVERLOADED",
            "tokens_per_minute",
        )
        assert (refused.value, refused.limit) == ("105", "250") and 1.0 <= refused.retry_after_s <= 60.0
        await ask(stack, OTHER)  # another tenant has its own
    assert len(first.target.calls) == 2 and len(first.draft.calls) == 2  # a rejected request costs nothing downstream


async def test_tokens_that_were_not_generated_are_returned(two_stacks):
    stacks = await two_stacks(TenantLimits(tokens_per_minute=350))
    for stack in stacks:
        stack.target.answer = lambda request: [1, 2, 3]
        assert (await ask(stack, new_tokens=100))[-1].usage.completion_tokens == 3
    # 400 tokens were reserved and 206 used: without the returned ones the second request would have been rejected.
    refused = await refusal_of(ask(stacks[0], new_tokens=100))
    assert (refused.value, refused.message) == (
        "200",
        "the request needs 200 tokens, but 144 of the tenant's 350 per minute are left",
    )


async def test_tokens_return_to_the_minute_in_which_they_were_taken(link, counts):
    """As in one process. The minutes pass by changed expiries."""
    rate = counts()._rate
    assert await rate.take("acme", 90, 100) is None
    (current,) = await link.execute("KEYS", "*acme*", timeout_s=PATIENT_S)
    await link.execute("PEXPIRE", current, 59_000, timeout_s=PATIENT_S)  # the next minute began a second ago
    await rate.give_back("acme", 80, 100, 2.0)
    # Of the 10 tokens used some 59/60 count, rounded down; on a slow machine some 45/60.
    assert await rate.take("acme", 100, 100) in (91, 92, 93)
    await link.execute("PEXPIRE", f"{current.decode()}/-1", 11_000, timeout_s=PATIENT_S)
    assert await rate.take("acme", 100, 100) == 99  # one token counts for five more seconds
    assert await rate.take("acme", 50, 100) is None
    await rate.give_back("acme", 20, 100, 0.5)
    assert await rate.take("acme", 100, 100) in (69, 70)


async def test_prompts_cannot_be_scored_for_free(two_stacks):
    """Each refused request has cost a draft pass: the tenant's tokens end."""
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=350))
    budget = {"strict": True, "min_coverage": 0.99, "max_prompt_tokens": 40}
    reasons = []
    for number in range(6):
        prompt = [token_id + number for token_id in LONG]
        wanted = request(prompt, max_new_tokens=5, budget=budget, route=plan_pb2.ROUTE_SPEC_PC)
        call = first.stub.Generate(wanted, metadata=bearer(ACME))
        reasons.append((await refusal_of(_all(call))).reason)
    assert reasons == ["BUDGET_EXCEEDED"] * 3 + ["OVERLOADED"] * 3 and len(first.draft.calls) == 3


async def _all(call):
    return [event async for event in call]


def sixteen_characters_a_token():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]{1,16}"), "isolated")
    return backend


@pytest.mark.parametrize(
    ("text", "tokenizer", "prompt_tokens"),
    [("a" * 120, None, 120), ("a" * 320, sixteen_characters_a_token(), 20)],
    ids=["four times the estimate", "a quarter of it"],
)
async def test_a_text_costs_its_tokens_whatever_they_were_estimated_at(open_stack, text, tokenizer, prompt_tokens):
    """The estimate is 30 tokens of the first text and 80 of the second."""
    limits, quotas = TenantLimits(tokens_per_minute=250), Quotas()
    stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator({"acme": limits})),), quotas=quotas)
    stack.tokenizer.backend = tokenizer or stack.tokenizer.backend
    stack.target.answer, stack.target.pause_after = lambda request: [1, 2, 3, 4], 1

    async def left():
        found = await quotas._rate.take("acme", 250, 250)
        assert found is not None
        return found

    call = aiter(stack.stub.Generate(request(text, max_new_tokens=10), metadata=bearer(ACME)))
    assert (await anext(call)).HasField("decision") and (await anext(call)).HasField("delta")
    assert await left() == 250 - prompt_tokens - 10
    stack.target.gate.set()
    assert (await _all(call))[-1].usage.completion_tokens == 4
    assert await left() == 250 - prompt_tokens - 4


async def test_no_more_is_reserved_than_the_context_holds(two_stacks):
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=500))
    assert (await ask(first, new_tokens=128_000))[-1].usage.completion_tokens


async def test_of_full_no_more_is_reserved_than_the_prompt_leaves(two_stacks):
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=450))
    wanted = request([1] * 200, max_new_tokens=128_000, route=plan_pb2.ROUTE_FULL)
    events = [event async for event in first.stub.Generate(wanted, metadata=bearer(ACME))]
    assert events[-1].usage.completion_tokens == 200


async def test_every_choice_is_reserved_for(two_stacks):
    first, second = await two_stacks(TenantLimits(tokens_per_minute=200))
    refused = await refusal_of(ask(first, new_tokens=51, choices=2))
    assert (refused.code, refused.field, refused.value) == ("INVALID_ARGUMENT", "tokens_per_minute", "202")
    first.target.answer = lambda request: [1, 2, 3]
    assert len([event for event in await ask(first, new_tokens=50, choices=2) if event.usage.prompt_tokens]) == 2
    # Of 200 reserved tokens 106 were used.
    refused = await refusal_of(ask(second, new_tokens=5))
    assert "but 94 of the tenant's 200 per minute are left" in refused.message


async def test_a_request_over_the_limit_of_a_minute_is_invalid(two_stacks):
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=50))
    refused = await refusal_of(ask(first))
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "tokens_per_minute")
    explained = first.stub.Explain(explain_of(LONG), metadata=bearer(ACME))
    assert (await refusal_of(explained)).field == "tokens_per_minute"


def explain_of(prompt):
    return orchestrator_pb2.ExplainRequest(prompt=wire_prompt(prompt))


async def test_concurrency_is_shared_and_released(two_stacks, link):
    first, second = await two_stacks(TenantLimits(concurrency=1))
    first.target.pause_after = 1
    call = first.stub.Generate(request(LONG), metadata=bearer(ACME))
    assert (await call.read()).WhichOneof("event") == "decision"
    refused = await refusal_of(ask(second))
    assert (refused.code, refused.field, refused.limit) == ("RESOURCE_EXHAUSTED", "concurrency", "1")
    assert refused.retry_after_s == 1.0
    await ask(second, OTHER)
    call.cancel()
    await first.settle(lambda: first.target.running == 0)
    async with asyncio.timeout(20):
        while await link.execute("ZCARD", "presift:running:acme", timeout_s=PATIENT_S):
            await asyncio.sleep(0.01)
    first.target.pause_after = None
    await ask(first)
    await ask(second)


@pytest.mark.parametrize("rpc", ["Generate", "Explain"])
async def test_over_the_limit_a_request_is_not_queued(open_stack, counts, rpc):
    stack = await open_stack(
        auth_interceptors=(AuthInterceptor(key_authenticator({"acme": TenantLimits(concurrency=1)})),),
        quotas=counts(),
        limits=QueueLimits(max_running=1),
    )
    stack.target.pause_after = 1
    running = stack.stub.Generate(request(LONG), metadata=bearer(OTHER))
    await running.read()
    waiting = stack.stub.Generate(request(LONG), metadata=bearer(ACME))
    await stack.settle(lambda: stack.admission.waiting == 1)
    call = stack.stub.Explain(explain_of(LONG), metadata=bearer(ACME)) if rpc == "Explain" else ask(stack)
    assert (await refusal_of(call)).field == "concurrency"
    assert stack.admission.waiting == 1
    running.cancel()
    waiting.cancel()


async def test_an_error_releases_the_concurrency(two_stacks, link):
    first, second = await two_stacks(TenantLimits(concurrency=1))
    refused = await refusal_of(first.stub.Generate(request([]), metadata=bearer(ACME)).read())
    assert refused.code == "INVALID_ARGUMENT"
    await ask(second)
    assert await link.execute("ZCARD", "presift:running:acme", timeout_s=PATIENT_S) == 0


async def test_leases_expire_unless_their_orchestrator_renews_them(valkey, link):
    async with contextlib.AsyncExitStack() as closing:
        links = [RedisClient(valkey.url, CacheLimits()) for _ in range(2)]
        for each in links:
            closing.push_async_callback(each.aclose)
        dead, living = (RedisConcurrencyLimit(each, PATIENT_S, ttl_s=0.6) for each in links)
        assert await dead.claim("acme", "a", 2) and await living.claim("acme", "b", 2)
        assert not await living.claim("acme", "c", 2)
        await dead.aclose()  # it renews no more, and releases nothing
        async with asyncio.timeout(20):
            while not await living.claim("acme", "c", 2):
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        assert not await living.claim("acme", "d", 2)  # b and c are still held
        for lease in "bc":
            await living.release("acme", lease)
        assert await link.execute("EXISTS", "presift:running:acme", timeout_s=PATIENT_S) == 0
        await living.aclose()


async def test_a_released_lease_is_not_renewed(link):
    leases = RedisConcurrencyLimit(link, PATIENT_S)
    assert await leases.claim("acme", "a", 1)
    await leases.release("acme", "a")
    assert not await leases._run("acme", "a", 0)  # as a renewal that was already in flight
    assert await leases.claim("acme", "b", 1)
    await leases.aclose()


async def test_keys_expire_by_themselves(two_stacks, link):
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=1000, concurrency=3))
    first.target.pause_after = 1
    call = first.stub.Generate(request(LONG), metadata=bearer(ACME))
    await call.read()
    keys = await link.execute("KEYS", "presift:r*", timeout_s=PATIENT_S)
    assert len(keys) == 2
    lives_s = [await link.execute("TTL", key, timeout_s=PATIENT_S) for key in keys]
    assert all(0 < life_s <= 120 for life_s in lives_s)
    call.cancel()


@pytest.mark.parametrize("on_failure", FailureMode)
async def test_redis_is_unavailable(open_stack, counts, on_failure, telemetry, tmp_path):
    """From one request to the next: then every request is admitted or rejected within the time limit."""
    both, before = TenantLimits(tokens_per_minute=1000, concurrency=5), telemetry.total("presift.limits.trouble")
    with embedded_cache() as cache:
        quotas = counts(cache.url, on_failure, timeout_s=0.25)
        stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator({"acme": both})),), quotas=quotas)
        await ask(stack)
    for _ in range(8):  # also while the circuit breaker is open
        if on_failure is FailureMode.OPEN:
            assert await ask(stack)
        else:
            refused = await refusal_of(ask(stack))
            assert (refused.code, refused.field, refused.value) == ("RESOURCE_EXHAUSTED", "concurrency", "unknown")
            assert refused.retry_after_s > 0
        assert await ask(stack, OTHER)  # a tenant without limits is not affected
    assert telemetry.total("presift.limits.trouble") > before


async def test_an_unexpected_reply_of_redis_counts_as_unavailable(open_stack, counts, link, valkey):
    stack = await open_stack(
        auth_interceptors=(AuthInterceptor(key_authenticator({"acme": TenantLimits(concurrency=5)})),),
        quotas=counts(on_failure=FailureMode.CLOSED),
    )
    await link.execute("SET", "presift:running:acme", "garbage", timeout_s=PATIENT_S)
    assert (await refusal_of(ask(stack))).value == "unknown"
    with pytest.raises(CacheUnavailable):
        await RedisConcurrencyLimit(link, PATIENT_S).claim("acme", "a", 1)


async def test_limits_follow_the_file(open_stack, counts):
    key, keys = new_key(), [Keys()]
    watched = SimpleNamespace(current=lambda: keys[0])
    stack = await open_stack(auth_interceptors=(AuthInterceptor(Authenticator(watched)),), quotas=counts())
    assert (await refusal_of(ask(stack, key))).code == "UNAUTHENTICATED"
    keys[0] = keys_of(key, TenantLimits(tokens_per_minute=50))
    assert (await refusal_of(ask(stack, key))).field == "tokens_per_minute"
    keys[0] = keys_of(key, TenantLimits())
    await ask(stack, key)


def keys_of(key, limits):
    return Keys((KeyEntry("k", "t", digest_of(key)),), {"t": limits})


async def test_a_tenant_holds_a_share_of_the_calls(open_stack):
    stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator()),))
    stack.server.calls._tenants._limit = 10

    async def silence():
        await asyncio.Event().wait()
        yield b""

    method = "/presift.v1.OrchestratorService/Generate"
    held = [stack.channel.stream_stream(method)(silence(), metadata=bearer(ACME)) for _ in range(10)]
    await stack.settle(lambda: stack.server.calls.running == 10)
    refused = await refusal_of(ask(stack))
    assert (refused.code, refused.field, refused.limit) == ("RESOURCE_EXHAUSTED", "calls of the tenant", "< 10")
    await ask(stack, OTHER)
    held[0].cancel()
    await stack.settle(lambda: stack.server.calls.running == 9)
    await ask(stack)
    for call in held:
        call.cancel()


async def test_over_the_quota_no_prompt_is_tokenized(two_stacks, monkeypatch):
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=250))
    await ask(first)
    await ask(first)
    encoded = []
    monkeypatch.setattr(first.tokenizer, "_read", lambda *arguments: encoded.append(arguments))
    generate = first.stub.Generate(request("word " * 200), metadata=bearer(ACME))
    explained = first.stub.Explain(explain_of("word " * 200), metadata=bearer(ACME))
    for refused in (await refusal_of(_all(generate)), await refusal_of(explained)):
        assert (refused.code, refused.field) == ("RESOURCE_EXHAUSTED", "tokens_per_minute")
    assert encoded == [] and first.admission.running == 0


async def test_over_the_quota_nobody_waits_for_another_tenants_mask(two_stacks):
    first, _ = await two_stacks(TenantLimits(tokens_per_minute=250))
    await ask(first)
    await ask(first)
    masks = first.pipeline.parts.reading_masks
    async with masks.slot("other", RequestCost(1, 1), NO_DEADLINE):
        wanted = orchestrator_pb2.ExplainRequest(
            prompt=wire_prompt("word " * 200), route=plan_pb2.ROUTE_SPEC_KV, include_kv_mask=True
        )
        refused = await refusal_of(first.stub.Explain(wanted, metadata=bearer(ACME), timeout=30))
    assert (refused.code, refused.field) == ("RESOURCE_EXHAUSTED", "tokens_per_minute")
