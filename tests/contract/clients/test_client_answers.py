"""Both Python clients against a real orchestrator: requests, answers and errors."""

import asyncio
from dataclasses import replace

import pytest

import presift_client as pc
from presift.core.errors import InternalError, Overloaded

from ..fakes.clients import CLIENTS, Asynchronous, Blocking
from ..fakes.services import CONTEXT, DRAFT_CONTEXT, VOCABULARY, hangs, keep, model, raises
from ..fakes.stack import ALL_ROUTES, CAPACITY, CASCADE, KV_CAPACITY, WINDOW

LONG = list(range(100, 200))
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"text": "d" * 1100}, {"type": "text", "text": "why?", "protected": True}]},
]


@pytest.fixture(params=CLIENTS.values(), ids=CLIENTS)
async def client(request, stack):
    client = request.param(stack.address)
    yield client
    await client.aclose()


async def test_generate_token_ids(stack, client):
    generation = await client.generate(token_ids=LONG, max_new_tokens=5)
    assert generation.token_ids == tuple(LONG[i] for i in keep(100, CAPACITY, WINDOW))[::-1][:5]
    decision = generation.decision
    assert (decision.route, decision.reason, decision.cache) == ("spec_pc", "over_budget", "miss")
    assert (decision.prompt_tokens, decision.kept_tokens, decision.kv_tokens) == (100, 16, 16)
    assert decision.coverage == pytest.approx(0.16)
    assert decision.draft == pc.Model("draft", "r1", DRAFT_CONTEXT, "f1") and decision.target == pc.Model(
        "target", "r1", CONTEXT, "f1"
    )
    usage = generation.usage
    assert (usage.prompt_tokens, usage.kept_tokens, usage.completion_tokens) == (100, 16, 5)
    assert (usage.cached_tokens, usage.finish_reason, usage.target_ttft_ms) == (3, "length", 7.0)


async def test_generate_text(client):
    generation = await client.generate("abc", max_new_tokens=2)
    assert generation.text == "cb"
    assert (generation.decision.route, generation.decision.coverage, generation.decision.draft) == ("full", None, None)


async def test_stream_has_one_decision_then_deltas_then_one_usage(client):
    events = await client.events("abc", max_new_tokens=5)
    assert isinstance(events[0], pc.Decision) and isinstance(events[-1], pc.Usage)
    assert all(isinstance(event, pc.Delta) for event in events[1:-1])
    assert "".join(event.text for event in events[1:-1]) == "cba"


async def test_messages_with_protected_parts(stack, client):
    await client.generate(messages=CHAT, max_prompt_tokens=80, max_new_tokens=1)
    rendered = f"<system>be brief</system><user>{'d' * 1100}why?</user><assistant>"
    (score,) = stack.draft.calls
    assert len(score.token_ids) == len(rendered)
    assert [(span.start, span.end) for span in score.protected_spans] == [
        (0, rendered.index("dd")),
        (rendered.index("why"), len(rendered)),
    ]


async def test_protected_message(stack, client):
    # The second of three user turns: neither the question nor the system prompt.
    chat = [{"role": "user", "content": text} for text in ("a" * 50, "b" * 5, "?")]
    chat[1]["protected"] = True
    await client.generate(messages=chat, max_prompt_tokens=70, max_new_tokens=1)
    rendered = "".join(f"<user>{message['content']}</user>" for message in chat) + "<assistant>"
    spans = [(span.start, span.end) for span in stack.draft.calls[0].protected_spans]
    assert spans == [(0, rendered.index("a" * 50)), (rendered.index("a" * 50) + 50, len(rendered))]


async def test_tools_are_rendered_and_protected(stack, client):
    tools = [{"name": "lookup", "description": "finds ä"}]
    chat = [{"role": "user", "content": "x" * 60}, {"role": "user", "content": "?"}]
    await client.generate(messages=chat, tools=tools, max_prompt_tokens=110, max_new_tokens=1)
    head = f"<tools>{tools}</tools><user>".encode()
    first = stack.draft.calls[0].protected_spans[0]
    assert (first.start, first.end) == (0, len(head))


async def test_protected_spans_of_token_ids(stack, client):
    generation = await client.generate(token_ids=LONG, protected_spans=[(50, 53)], max_new_tokens=16)
    assert set(range(150, 153)) <= set(generation.token_ids)


async def test_every_option_arrives(stack, client):
    await client.generate(
        token_ids=LONG,
        route="spec_pc",
        max_prompt_tokens=20,
        max_kv_tokens=18,
        strict=True,
        compress_above_tokens=50,
        max_new_tokens=3,
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        seed=11,
        stop=["zz"],
        stop_token_ids=[4],
        ignore_eos=True,
        deadline_s=30.0,
    )
    sampling = stack.target.calls[0].sampling
    assert len(stack.target.calls[0].token_ids) == 18
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (3, 0.5, 0.25, 7)
    assert (sampling.seed, list(sampling.stop), list(sampling.stop_token_ids)) == (11, ["zz"], [4])
    assert sampling.ignore_eos


async def test_every_kv_option_arrives_and_every_result_comes_back(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    for client in (Asynchronous(stack.address), Blocking(stack.address)):
        options = {"token_ids": LONG, "route": "spec_kv", "max_kv_tokens": 21, "max_new_tokens": 2}
        kv = {"kv_selection": "target_lookahead", "keep_full_prefix": False, "kv_lookahead_tokens": 2}
        first = await client.generate(**options, **kv)
        plan, decision, usage = stack.target.calls[-1].kv_plan, first.decision, first.usage
        assert (plan.policy.capacity, len(plan.lookahead_token_ids), plan.keep_full_prefix) == (20, 2, False)
        assert (decision.kv_capacity, decision.kv_selection, decision.kv_tokens) == (20, "target_lookahead", 21)
        assert (decision.keep_full_prefix, decision.continued, usage.kv_tokens) == (False, False, 21)
        if not usage.reused_entry:
            assert (usage.score_ms, usage.publish_ms, usage.coverage) == (11.0, 4.0, 0.75)
        options["token_ids"] = [*LONG, 7]
        later = await client.generate(**options, continue_prompt_tokens=decision.prompt_tokens)
        assert later.decision.continued and later.usage.reused_entry and later.usage.coverage is None
        await client.aclose()


async def test_every_option_of_renewal_arrives(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    for client in (Asynchronous(stack.address), Blocking(stack.address)):
        options = {"kv_lookahead": "target", "first_full_tokens": 4, "renew_every": 3, "renew_window": 2}
        decision = (await client.generate(token_ids=LONG, route="spec_kv", **options)).decision
        policy = stack.target.calls[-1].kv_plan.policy
        assert (policy.first_full_tokens, policy.renew_every, policy.renew_window) == (4, 3, 2)
        assert {name: getattr(decision, name) for name in options} == options and decision.draft is None
        await client.aclose()


async def test_a_client_sees_renewals_and_those_that_were_skipped(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)

    def report(usage):
        usage.renewals, usage.renewals_skipped, usage.accepted_tokens = 3, 2, 1
        usage.kv_tokens_peak, usage.kv_tokens_mean, usage.coverage_min = 70, 55.5, 0.25

    stack.target.spoil = report
    for client in (Asynchronous(stack.address), Blocking(stack.address)):
        usage = (await client.generate(token_ids=LONG, route="spec_kv", max_new_tokens=2)).usage
        assert (usage.renewals, usage.renewals_skipped, usage.accepted_tokens) == (3, 2, 1)
        assert (usage.kv_tokens_peak, usage.kv_tokens_mean, usage.coverage_min) == (70, 55.5, 0.25)
        await client.aclose()


async def test_a_mask_and_a_cascade(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    client = Asynchronous(stack.address)
    mask = (await client.generate(token_ids=LONG, route="spec_kv", kv_selection="draft_mask")).decision
    cascade = (await client.generate(token_ids=LONG, route="spec_kv_pc")).decision
    assert (mask.kv_selection, mask.kept_tokens, mask.kv_capacity) == ("draft_mask", 100, KV_CAPACITY)
    assert (cascade.route, cascade.kept_tokens, cascade.kv_capacity) == ("spec_kv_pc", CASCADE, KV_CAPACITY)
    await client.aclose()


async def test_info(client):
    info = await client.info()
    assert [(each.role, each.breaker, each.unused) for each in info.replicas] == [
        ("draft", "closed", ""),
        ("target", "closed", ""),
    ]
    assert replace(info, replicas=()) == pc.Info(
        draft=pc.Model("draft", "r1", DRAFT_CONTEXT, "f1"),
        target=pc.Model("target", "r1", CONTEXT, "f1"),
        supported_routes=("full", "spec_pc"),
        compress_above_tokens=32,
        engine="fake",
    )


async def test_info_without_a_draft(open_stack):
    stack = await open_stack(draft_up=False)
    client = Asynchronous(stack.address)
    assert (await client.info()).draft is None
    await client.aclose()


MISUSE = {
    "unknown option": ({"prompt": "x", "temprature": 1}, TypeError, "temprature"),
    "no prompt": ({}, ValueError, "exactly one"),
    "two prompts": ({"prompt": "x", "token_ids": [1]}, ValueError, "exactly one"),
    "unknown route": ({"prompt": "x", "route": "warp"}, ValueError, "spec_pc"),
    "unspecified route": ({"prompt": "x", "route": "unspecified"}, ValueError, "auto"),
    "tools without messages": ({"prompt": "x", "tools": [{}]}, ValueError, "messages"),
    "unknown message key": ({"messages": [{"role": "user", "content": "x", "nom": "y"}]}, ValueError, "nom"),
    "image part": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ValueError, "image_url"),
    "negative id": ({"token_ids": [-1]}, ValueError, "-1"),
}


@pytest.mark.parametrize(("options", "kind", "word"), MISUSE.values(), ids=MISUSE)
async def test_misuse_is_refused_before_anything_is_sent(stack, client, options, kind, word):
    with pytest.raises(kind, match=word):
        await client.generate(**options)
    assert stack.target.calls == []


REFUSED = {
    "invalid": (
        {"token_ids": [VOCABULARY]},
        pc.InvalidRequest,
        ("prompt.token_ids", "1000", "< 1000 (the vocabulary)"),
    ),
    "too long": (
        {"token_ids": [1] * CONTEXT, "route": "full", "max_new_tokens": 5},
        pc.PromptTooLong,
        ("prompt", "400 tokens", "<= 399 (context 400 less 1 for the answer)"),
    ),
    "over budget": (
        {"token_ids": LONG[:30], "max_prompt_tokens": 20, "strict": True},
        pc.BudgetExceeded,
        ("budget", "30", "<= 20 tokens"),
    ),
    "unsupported": (
        {"token_ids": LONG, "route": "spec_kv"},
        pc.RouteUnsupported,
        ("route", "spec_kv", "one of full, spec_pc"),
    ),
}


@pytest.mark.parametrize(("options", "kind", "details"), REFUSED.values(), ids=REFUSED)
async def test_typed_errors(client, options, kind, details):
    with pytest.raises(pc.PresiftError) as refusal:
        await client.generate(**options)
    error = refusal.value
    assert type(error) is kind and (error.field, error.value, error.limit) == details
    assert error.retry_after_s is None and str(error)


async def test_overloaded_says_when_to_retry(stack, client):
    stack.target.faults.append(raises(Overloaded("requests", 65, "<= 64", 2.5)))
    with pytest.raises(pc.Overloaded) as refusal:
        await client.generate(token_ids=[1])
    assert (refusal.value.retry_after_s, refusal.value.field) == (2.5, "requests")


async def test_target_that_dies_is_unavailable(stack, client):
    stack.target.die_after = 1
    with pytest.raises(pc.Unavailable) as refusal:
        await client.generate(token_ids=[1, 2, 3])
    assert refusal.value.reason == "TARGET_UNAVAILABLE" and len(stack.target.calls) == 1


async def test_defect_is_an_internal_error(stack, client, monkeypatch):
    def broken(info):
        raise InternalError("a defect")

    monkeypatch.setattr(stack.models, "target", None)
    monkeypatch.setattr(type(stack.models), "target", property(broken), raising=False)
    with pytest.raises(pc.InternalError):
        await client.info()


@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
async def test_an_unreachable_service_is_unavailable(make):
    client = make("127.0.0.1:1")
    with pytest.raises(pc.Unavailable) as refusal:
        await client.generate("x")
    assert refusal.value.reason == ""
    await client.aclose()


async def test_deadline(stack, client):
    stack.target.faults.append(hangs)
    with pytest.raises(pc.DeadlineExceeded):
        await client.generate(token_ids=[1, 2], deadline_s=0.3)
    await stack.settle(lambda: stack.target.running == 0)
    assert stack.target.cancelled == 1


async def test_leaving_early_cancels(stack, client):
    stack.target.pause_after = 1
    events = await client.leave_after(2, token_ids=[1, 2, 3])
    assert events[1].token_ids == (3,)
    await stack.settle(lambda: stack.target.running == 0)
    assert stack.target.cancelled == 1


async def test_a_cancelled_task_cancels(stack):
    client = Asynchronous(stack.address)
    stack.target.pause_after = 1
    task = asyncio.create_task(client.generate(token_ids=[1, 2, 3]))
    await stack.settle(lambda: stack.target.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stack.settle(lambda: stack.target.running == 0)
    assert stack.target.cancelled == 1
    await client.aclose()


SAME = {
    "token ids": {"token_ids": LONG, "max_new_tokens": 9},
    "text": {"prompt": "héllo 😀", "max_new_tokens": 20},
    "chat": {"messages": CHAT, "max_prompt_tokens": 80, "max_new_tokens": 9},
    "full": {"token_ids": LONG, "route": "full", "max_new_tokens": 50},
}


@pytest.mark.parametrize("options", SAME.values(), ids=SAME)
async def test_both_clients_get_the_same(stack, options):
    clients = [Blocking(stack.address), Asynchronous(stack.address)]
    await clients[0].generate(**options)  # fills the cache for both
    blocking, asynchronous = [timeless(await client.generate(**options)) for client in clients]
    assert blocking == asynchronous
    for client in clients:
        await client.aclose()


def timeless(generation):
    times = {"tokenize_ms": 0.0, "cache_ms": 0.0, "draft_ms": 0.0, "prefill_ms": 0.0, "predicted_ttft_ms": 0.0}
    usages = [replace(each.usage, ttft_ms=0.0, total_ms=0.0) for each in generation.choices]
    return replace(
        generation,
        choices=tuple(replace(each, usage=usage) for each, usage in zip(generation.choices, usages, strict=True)),
        decision=replace(generation.decision, **times),
        usage=replace(generation.usage, ttft_ms=0.0, total_ms=0.0),
    )


async def test_one_blocking_client_serves_many_threads(stack):
    client = Blocking(stack.address)
    answers = await asyncio.gather(*(client.generate(token_ids=[n, n + 1]) for n in range(16)))
    assert [answer.token_ids for answer in answers] == [(n + 1, n) for n in range(16)]
    await client.aclose()


async def test_draft_of_another_revision_is_named(open_stack):
    stack = await open_stack(draft=model("draft", revision="r7"))
    client = Asynchronous(stack.address)
    assert (await client.generate(token_ids=LONG)).decision.draft.revision == "r7"
    await client.aclose()
