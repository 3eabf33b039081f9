"""A target is lost in mid-answer: another one continues the answer where the caller allowed it and where it can."""

import asyncio
import logging
from types import SimpleNamespace

import grpc
import pytest

from presift.rpc.status import error_of
from presift.v1 import plan_pb2, target_pb2

from ...faults.proxy import FaultProxy
from ..fakes.http_api import MODEL
from ..fakes.services import aborts, raises
from ..fakes.stack import ALL_ROUTES, Options, Stack, request

FULL, SPEC_PC, SPEC_KV = plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV
LONG = list(range(100, 200))
TOKENS, BREAK = 9, 4
SEEDED = {"temperature": 0.5, "seed": 7}


def generated(asked):
    """As a model does: each token follows from those before it, from their number, and from the seed if one is set."""
    ids, seed = list(asked.token_ids), asked.sampling.seed
    for _ in range(asked.sampling.max_new_tokens):
        ids.append((sum(ids[-7:]) * 31 + len(ids) * 17 + seed) % 256)
    return ids[len(asked.token_ids) :]


def request_of(prompt):
    return target_pb2.TargetServiceGenerateRequest(
        token_ids=prompt, sampling=target_pb2.Sampling(max_new_tokens=TOKENS)
    )


def with_logprob(asked, token_id):
    delta = target_pb2.TokenDelta(token_ids=[token_id])
    if asked.sampling.HasField("top_logprobs"):
        delta.logprobs.add(token_id=token_id, logprob=-token_id)
    return delta


class ProxiedStack(Stack):
    """Each target is behind a proxy, whose connections can be cut."""

    async def _serve(self, server):
        port = await super()._serve(server)
        if server not in self.target_servers:
            return port
        proxy = FaultProxy(f"127.0.0.1:{port}")
        await proxy.start()
        self._exit.push_async_callback(proxy.aclose)
        self.proxies = [*getattr(self, "proxies", []), proxy]
        return proxy.port


@pytest.fixture
async def open_proxied():
    stacks = []

    async def open_proxied(targets=3, **options):
        stack = ProxiedStack(Options(targets=targets, routes=ALL_ROUTES, **options))
        stacks.append(stack)
        await stack.start()
        await stack.connect()
        for number, target in enumerate(stack.targets):
            target.replica, target.answer, target.delta = f"process {number}", generated, with_logprob
        if targets > 1:
            await stack.settle(lambda: len(stack.remote_target._pool.usable()) == targets)
        return stack

    yield open_proxied
    for stack in stacks:
        await stack.stop()


@pytest.fixture
async def stack(open_proxied):
    return await open_proxied()


def busy(stack):
    return next(number for number, target in enumerate(stack.targets) if target.running)


async def cut(stack):
    stack.proxies[busy(stack)].cut()


class Breaks:
    """Loses the busy target once so many tokens of an answer have come, the next one after so many more, and so on."""

    def __init__(self, stack, breaks, lose):
        self.stack, self.lose, self.left, self.due = stack, lose, list(breaks), 0
        for target in stack.targets:
            target.pause_after = breaks[0] if breaks else None
        self._aim()

    def _aim(self):
        self.due += self.left[0] if self.left else 10**6

    async def reached(self, tokens):
        if tokens != self.due:
            return
        del self.left[0]
        lost = busy(self.stack)
        for number, target in enumerate(self.stack.targets):
            if number != lost:
                target.pause_after = self.left[0] if self.left else None
        self._aim()
        await self.lose(self.stack)


async def ask(stack, *, breaks=(BREAK,), lose=cut, prompt=LONG, migrate=True, **options):
    """The answer, or the error, and what the targets were asked."""
    for target in stack.targets:
        target.calls.clear()
    plan = Breaks(stack, breaks, lose)
    found = SimpleNamespace(text="", token_ids=[], logprobs=[], usages=[], error=None)
    try:
        async for event in stack.stub.Generate(request(prompt, max_new_tokens=TOKENS, migrate=migrate, **options)):
            if event.HasField("usage"):
                found.usages.append(event.usage)
            found.text += event.delta.text
            found.token_ids += event.delta.token_ids
            found.logprobs += [each.token_id for each in event.delta.logprobs]
            await plan.reached(len(found.token_ids))
    except grpc.aio.AioRpcError as error:
        found.error = error
    found.asked = sorted((call for each in stack.targets for call in each.calls), key=lambda call: len(call.token_ids))
    return found


async def stop_server(stack):
    await stack.target_servers[busy(stack)].grpc.stop(0)


CASES = {
    "greedy": {"route": FULL},
    "seeded": {"route": FULL, "sampling": SEEDED},
    "log probabilities": {"route": FULL, "sampling": {"top_logprobs": 0}},
    "a short answer is not allowed": {"route": FULL, "sampling": {"min_new_tokens": 6}},
    "neutral penalties": {"route": FULL, "sampling": {"presence_penalty": 0.0, "repetition_penalty": 1.0}},
    "a stop string that has not begun": {"route": FULL, "sampling": {"stop": ["never said"]}},
    "a compressed prompt": {"route": SPEC_PC, "sampling": SEEDED},
    "KV is dropped": {"route": SPEC_KV},
    "KV is dropped by the draft's mask": {"route": SPEC_KV, "kv": {"selection": plan_pb2.KV_SELECTION_DRAFT_MASK}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_whole_answer_is_that_of_an_undisturbed_target(stack, case):
    quiet = await ask(stack, breaks=(), migrate=False, **case)
    told = await ask(stack, **case)
    assert (told.error, quiet.error) == (None, None) and len(told.token_ids) == TOKENS
    assert (told.text, told.token_ids, told.logprobs) == (quiet.text, quiet.token_ids, quiet.logprobs)
    [usage], [calm] = told.usages, quiet.usages
    assert usage.migrated and not calm.migrated
    names = ("prompt_tokens", "kept_tokens", "kv_tokens", "completion_tokens", "finish_reason")
    assert [getattr(usage, name) for name in names] == [getattr(calm, name) for name in names]
    assert usage.cached_tokens <= usage.kept_tokens


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_second_target_reads_the_prompt_and_the_answer_so_far(open_proxied, case):
    told = await ask(await open_proxied(salt="a salt"), **case)
    first, second = told.asked
    assert list(second.token_ids) == [*first.token_ids, *told.token_ids[:BREAK]]
    assert second.cache_salt == first.cache_salt != ""
    assert second.sampling.max_new_tokens == TOKENS - BREAK
    assert second.sampling.min_new_tokens == max(0, first.sampling.min_new_tokens - BREAK)
    assert second.HasField("kv_plan") == first.HasField("kv_plan")
    if first.HasField("kv_plan"):
        assert second.kv_plan.prompt_tokens == len(first.token_ids)
        second.kv_plan.prompt_tokens = first.kv_plan.prompt_tokens
        assert second.kv_plan == first.kv_plan


async def test_what_the_second_target_reports_of_the_answer_so_far_is_not_of_the_prompt(stack):
    def report(usage):
        usage.cached_tokens = usage.prompt_tokens - 1
        usage.prompt_logprobs.extend(target_pb2.TokenLogprob(token_id=each) for each in range(usage.prompt_tokens))

    for target in stack.targets:
        target.spoil = report
    [usage] = (await ask(stack, route=FULL, sampling={"top_logprobs": 0, "prompt_logprobs": True})).usages
    assert usage.migrated and usage.cached_tokens == len(LONG)
    assert [each.token_id for each in usage.prompt_logprobs] == list(range(len(LONG)))


async def test_a_later_turn_keeps_its_plan(stack):
    kv = {"continue_prompt_tokens": 100}
    assert (await ask(stack, breaks=(), route=SPEC_KV)).error is None
    told = await ask(stack, prompt=[*LONG, 3, 4], route=SPEC_KV, kv=kv)
    assert told.error is None and [call.kv_plan.prompt_tokens for call in told.asked] == [100, 100]


async def test_a_target_that_shuts_down_is_lost_too(stack):
    told = await ask(stack, lose=stop_server, route=FULL)
    assert told.error is None and told.usages[0].migrated


async def test_it_is_counted_and_logged(stack, telemetry, caplog):
    before = telemetry.total("presift.replica.migrations")
    with caplog.at_level(logging.WARNING, "presift.orchestrator.backends.target_client"):
        await ask(stack, route=FULL)
    assert telemetry.total("presift.replica.migrations") == before + 1
    [line] = [record.getMessage() for record in caplog.records if "continues" in record.getMessage()]
    assert f"after {BREAK} tokens" in line and sum(proxy.address in line for proxy in stack.proxies) == 2


async def test_over_http_too(stack, open_http_api):
    api = await open_http_api(stack)
    for target in stack.targets:
        target.pause_after = BREAK
    options = {"route": "full", "migrate": True, "token_ids": True}
    stream = await api.client.completions.create(
        model=MODEL, prompt=LONG, max_tokens=TOKENS, temperature=0, stream=True, extra_body={"presift": options}
    )
    token_ids, usages = [], []
    async for chunk in stream:
        token_ids += [each for choice in chunk.choices for each in choice.token_ids or ()]
        if len(token_ids) == BREAK:
            lost = busy(stack)
            for number, target in enumerate(stack.targets):
                target.pause_after = BREAK if number == lost else None
            stack.proxies[lost].cut()
        usages += [extra["usage"] for extra in [chunk.model_extra.get("presift") or {}] if "usage" in extra]
    assert token_ids == generated(request_of(LONG)) and [usage["migrated"] for usage in usages] == [True]


async def test_nothing_is_learned_from_it(stack, monkeypatch):
    learned = []
    monkeypatch.setattr(stack.estimator, "observe", learned.append)
    await ask(stack, route=FULL)
    assert not learned
    await ask(stack, breaks=(), route=FULL)
    assert len(learned) == 1


async def test_each_of_several_answers_is_continued(stack):
    def deltas_of(events, number):
        deltas = [event.delta for event in events if event.HasField("delta") and event.delta.choice == number]
        return [token_id for delta in deltas for token_id in delta.token_ids]

    asked = request(LONG, max_new_tokens=TOKENS, route=FULL, sampling=SEEDED, choices=2, migrate=True)
    quiet = [event async for event in stack.stub.Generate(asked)]
    for target in stack.targets:
        target.pause_after = BREAK
    told, running = [], stack.stub.Generate(asked)
    async for event in running:
        told.append(event)
        if [len(deltas_of(told, number)) for number in (0, 1)] == [BREAK, BREAK]:
            lost = busy(stack)
            for number, target in enumerate(stack.targets):
                target.pause_after = BREAK if number == lost else None
            stack.proxies[lost].cut()
    assert [deltas_of(told, number) for number in (0, 1)] == [deltas_of(quiet, number) for number in (0, 1)]
    assert [event.usage.migrated for event in told if event.HasField("usage")] == [True, True]


NOT_CONTINUED = {
    "not allowed": {"migrate": False},
    "sampling without a seed": {"sampling": {"temperature": 0.5}},
    "presence": {"sampling": {"presence_penalty": 0.5}},
    "frequency": {"sampling": {"frequency_penalty": -0.5}},
    "repetition": {"sampling": {"repetition_penalty": 1.5}},
    "a grammar": {"sampling": {"regex": "a+"}},
    "nothing is left": {"breaks": (TOKENS,)},
    "a seed where KV is dropped": {"route": SPEC_KV, "sampling": SEEDED},
    "KV is selected anew": {"route": SPEC_KV, "kv": {"renew_every": 4}},
    "the answer selects": {"route": SPEC_KV, "kv": {"first_full_tokens": 4}},
}


def delivered(told):
    """How many tokens the error says had come."""
    return int(error_of(told.error).details.get("delivered_tokens", 0))


@pytest.mark.parametrize("case", NOT_CONTINUED.values(), ids=NOT_CONTINUED)
async def test_else_it_fails_and_says_how_many_had_come(open_proxied, case):
    stack = await open_proxied(abilities={"grammars": True})
    told = await ask(stack, **{"route": FULL} | case)
    assert told.error.code() is grpc.StatusCode.UNAVAILABLE
    assert delivered(told) == len(told.token_ids) == case.get("breaks", (BREAK,))[0]
    assert len(told.asked) == 1


async def test_a_format_that_the_target_parses_is_not_continued(open_proxied):
    stack = await open_proxied(abilities={"reasoning_parser": "echo"})
    for target in stack.targets:
        target.delta = lambda asked, token_id: target_pb2.TokenDelta(
            token_ids=[token_id], parsed=target_pb2.ParsedText(content="a")
        )
    told = await ask(stack, prompt=[("user", "hi")], route=FULL)
    assert delivered(told) == BREAK and len(told.asked) == 1


@pytest.mark.parametrize(("said", "continues"), [(b"a+b-xxxxx", True), (b"abc+xxxxx", False)])
async def test_a_stop_string_is_not_split(stack, said, continues):
    """The stop string is "+-": a target that reads "+" as a part of its prompt would not find it."""
    ids = stack.tokenizer.backend.encode(said.decode(), add_special_tokens=False).ids
    for target in stack.targets:
        target.answer = lambda asked: (LONG + ids)[len(asked.token_ids) :]
    told = await ask(stack, route=FULL, sampling={"stop": ["+-"]})
    assert (told.error is None) is continues and len(told.asked) == 1 + continues
    if continues:
        assert told.text == said.decode()
    else:
        assert delivered(told) == BREAK


@pytest.mark.parametrize("lose", [cut, stop_server])
async def test_it_is_continued_once(stack, lose):
    told = await ask(stack, breaks=(BREAK, 2), lose=lose, route=FULL)
    assert told.error.code() is grpc.StatusCode.UNAVAILABLE
    assert delivered(told) == len(told.token_ids) == BREAK + 2
    assert len(told.asked) == 2


async def test_a_prompt_with_which_two_targets_were_lost_is_not_continued(stack):
    assert (await ask(stack, route=FULL, migrate=False)).error
    told = await ask(stack, route=FULL)
    assert told.error.code() is grpc.StatusCode.INTERNAL and "this prompt" in told.error.details()
    assert delivered(told) == BREAK and len(told.asked) == 1
    refused = await ask(stack, route=FULL)
    assert refused.error.code() is grpc.StatusCode.INTERNAL and not refused.asked
    assert (await ask(stack, prompt=LONG[:50], route=FULL)).usages[0].migrated


async def test_the_retry_budget_counts(stack):
    stack.remote_target._pool.retry_budget._left = 0.0
    told = await ask(stack, route=FULL)
    assert delivered(told) == BREAK and len(told.asked) == 1


async def test_an_error_of_the_target_is_not_continued(stack):
    for target in stack.targets:
        target.die_after = BREAK
    told = await ask(stack, breaks=(), route=FULL)
    assert delivered(told) == BREAK and len(told.asked) == 1


async def test_without_another_target_it_fails(open_proxied):
    told = await ask(await open_proxied(targets=1), route=FULL)
    assert told.error.code() is grpc.StatusCode.UNAVAILABLE
    assert delivered(told) == BREAK and len(told.asked) == 1


def fail_next(targets, *faults):
    """The next calls of these targets have these faults."""
    waiting = list(faults)

    async def next_fault(context):
        if waiting:
            await waiting.pop(0)(context)

    for target in targets:
        target.faults.append(next_fault)


@pytest.mark.parametrize(
    ("faults", "calls", "continues"),
    [
        ([aborts(grpc.StatusCode.UNAVAILABLE)], 3, True),
        ([aborts(grpc.StatusCode.UNAVAILABLE)] * 2, 3, False),
        ([raises(RuntimeError("poison"))], 2, False),
    ],
    ids=["one is unreachable", "all are unreachable", "one fails"],
)
async def test_an_answer_has_three_calls_at_most(open_proxied, faults, calls, continues):
    async def lose(stack):
        lost = busy(stack)
        fail_next([each for number, each in enumerate(stack.targets) if number != lost], *faults)
        await cut(stack)

    told = await ask(await open_proxied(targets=4), lose=lose, route=FULL)
    assert (told.error is None) is continues and len(told.asked) == calls
    if not continues:
        assert delivered(told) == BREAK


async def test_calls_before_the_answer_count_too(open_proxied):
    stack = await open_proxied(targets=4)
    fail_next(stack.targets, *[aborts(grpc.StatusCode.UNAVAILABLE)] * 2)
    told = await ask(stack, route=FULL)
    assert delivered(told) == BREAK and len(told.asked) == 3


async def test_a_caller_who_leaves_ends_the_second_target_too(stack):
    for target in stack.targets:
        target.pause_after = BREAK
    call = stack.stub.Generate(request(LONG, max_new_tokens=TOKENS, route=FULL, migrate=True))
    count = 0
    async for event in call:
        count += len(event.delta.token_ids)
        if count == BREAK:
            first = busy(stack)
            await cut(stack)
            break
    await stack.settle(lambda: any(each.running for each in stack.targets if each is not stack.targets[first]))
    call.cancel()
    await stack.settle(lambda: not any(each.running for each in stack.targets))
    await asyncio.sleep(0)
    assert sum(each.cancelled for each in stack.targets) == 2
