"""Several drafts and targets behind one orchestrator: who is asked, who stands in, who is left out."""

import asyncio
from collections import Counter
from contextlib import aclosing
from unittest.mock import Mock

import grpc
import numpy as np
import pytest

from presift.core.errors import Overloaded, TargetUnavailable
from presift.core.plan import Route
from presift.orchestrator.api.grpc.requests import request_from_wire
from presift.orchestrator.backends.affinity import affinity_key
from presift.orchestrator.domain.caller import Caller
from presift.orchestrator.domain.ports import TargetRequest
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.pipeline.events import Report
from presift.orchestrator.planning import draft_stage
from presift.rpc.circuit_breaker import BreakerState
from presift.rpc.deadline import NO_DEADLINE
from presift.rpc.pool import pool as pool_module
from presift.rpc.pool import replica as replica_module
from presift.rpc.pool.pool import FAILURES
from presift.rpc.pool.reference import MINORITY_S
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.services import aborts, hangs, model, raises
from ..fakes.stack import ALL_ROUTES, Options, request

FULL, SPEC_PC, SPEC_KV = plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV
UNAVAILABLE = aborts(grpc.StatusCode.UNAVAILABLE)


def prompt(number, tokens=200):
    return np.random.default_rng(number).integers(1, 900, tokens).tolist()


@pytest.fixture
def open_pool(build):
    """options -> a stack all of whose replicas are known."""

    async def open_pool(**options):
        stack = await build(**{"drafts": 2, "targets": 2} | options)
        for number, target in enumerate(stack.targets):
            target.replica = f"process {number}"
        await stack.connect()
        await stack.settle(lambda: all(each.is_healthy for each in stack.models.statuses()))
        await stack.settle(lambda: not strangers(stack))
        return stack

    return open_pool


def strangers(stack):
    pools = (stack.remote_draft._pool, stack.remote_target._pool)
    return [each for pool in pools if not pool.is_alone for each in pool._replicas.values() if each.known is None]


def answered(fakes):
    return [len(fake.calls) for fake in fakes]


async def replicas(stack):
    info = await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
    return {each.address: each for each in info.replicas}


def address(server_port):
    return f"127.0.0.1:{server_port}"


# -- who is asked --


async def test_equal_prefixes_share_a_replica_and_different_ones_spread(open_pool):
    stack = await open_pool(targets=3)
    for number in range(24):
        for question in ([1], [2, 3]):
            # More than a key's worth in common would be the same prompt to the key.
            await stack.ask(prompt(number) + question, route=FULL)
    by_prompt = Counter()
    for target in stack.targets:
        by_prompt.update({tuple(call.token_ids[:20]) for call in target.calls})
    assert sum(answered(stack.targets)) == 48 and all(answered(stack.targets))


async def test_the_same_document_with_another_question_shares_a_replica(open_pool):
    stack = await open_pool(targets=3)
    document = "".join(f"line {number} of the document. " for number in range(8))
    for system in ("Be brief.", "Be kind, be very kind, and answer from the document."):
        for question in ("Who?", "What then, and why?", "When?"):
            chat = orchestrator_pb2.Chat(
                messages=[
                    orchestrator_pb2.Message(role="system", parts=[orchestrator_pb2.TextPart(text=system)]),
                    orchestrator_pb2.Message(
                        role="user",
                        parts=[
                            orchestrator_pb2.TextPart(text=document, document=True),
                            orchestrator_pb2.TextPart(text=question, protected=True),
                        ],
                    ),
                ]
            )
            await stack.ask(orchestrator_pb2.Prompt(chat=chat), route=FULL, max_new_tokens=1)
    assert sorted(answered(stack.targets)) == [0, 0, 6]


async def test_a_hot_document_spreads(open_pool):
    stack = await open_pool()
    for target in stack.targets:
        target.pause_after = 1
    asking = [asyncio.create_task(stack.ask(prompt(1), route=FULL)) for _ in range(8)]
    await stack.settle(lambda: sum(target.running for target in stack.targets) == 8)
    # The last one came where no more than ceil(1.25 * 7 / 2) were.
    assert max(answered(stack.targets)) <= 6
    for target in stack.targets:
        target.gate.set()
    await asyncio.gather(*asking)


async def test_a_replica_counts_as_busy_while_the_decision_is_delivered(open_pool):
    """Else a burst of requests would all take the same one."""
    stack = await open_pool()
    stream = stack.pipeline.generate(request_from_wire(request(prompt(1), route=FULL), Caller(), ""), NO_DEADLINE)
    in_flight = []
    async with aclosing(stream):
        async for event in stream:
            in_flight.append(sum(each.in_flight for each in stack.remote_target.statuses()))
            if isinstance(event, Report):
                break
    assert in_flight[0] == 1 and max(in_flight) == 1
    await stack.settle(lambda: sum(each.in_flight for each in stack.remote_target.statuses()) == 0)


async def test_drafts_share_the_load(open_pool):
    stack = await open_pool()
    for draft in stack.drafts:
        draft.gate.clear()
    asking = [asyncio.create_task(stack.ask(prompt(number), route=SPEC_PC)) for number in range(6)]
    await stack.settle(lambda: sum(answered(stack.drafts)) == 6)
    assert answered(stack.drafts) == [3, 3]
    info = await replicas(stack)
    assert sorted(each.in_flight for each in info.values() if each.role == "draft") == [3, 3]
    for draft in stack.drafts:
        draft.gate.set()
    assert {answer.route for answer in await asyncio.gather(*asking)} == {"SPEC_PC"}


async def test_prefill_and_answer_go_to_one_target(open_pool):
    stack = await open_pool(routes=ALL_ROUTES)
    for number in range(24):
        answer = await stack.ask(prompt(number), route=SPEC_KV)
        assert answer.route == "SPEC_KV"
    for target in stack.targets:
        assert [list(each.token_ids) for each in target.prefills] == [list(each.token_ids) for each in target.calls]
    assert all(answered(stack.targets))


async def test_prefill_and_answer_go_to_one_target_while_the_breaker_is_half_open(open_pool):
    stack = await open_pool(routes=ALL_ROUTES)
    for each in usable_targets(stack):
        each.breaker = Mock(state=BreakerState.HALF_OPEN)
    for number in range(24):
        assert (await stack.ask(prompt(number), route=SPEC_KV)).route == "SPEC_KV"
    for target in stack.targets:
        assert [list(each.token_ids) for each in target.prefills] == [list(each.token_ids) for each in target.calls]
    assert all(answered(stack.targets))


async def test_a_request_counts_once_at_its_replica_during_the_prefill(open_pool):
    stack = await open_pool(routes=ALL_ROUTES)
    for target in stack.targets:
        target.prefill_faults.append(hangs)
    asking = asyncio.create_task(stack.ask(prompt(1), route=SPEC_KV))
    await stack.settle(lambda: sum(len(target.prefills) for target in stack.targets) == 1)
    assert sorted(each.in_flight for each in usable_targets(stack)) == [0, 1]
    asking.cancel()
    await asyncio.wait((asking,))
    await stack.settle(lambda: not any(each.in_flight for each in usable_targets(stack)))


def usable_targets(stack):
    return stack.remote_target._pool.usable()


# -- who stands in --


async def test_another_target_answers_if_one_fails_before_its_first_token(open_pool):
    stack = await open_pool()
    for number in range(8):
        stack.targets[1].faults.append(UNAVAILABLE)
        answer = await stack.ask(prompt(number), route=FULL)
        assert answer.token_ids == prompt(number)[::-1][:5]
        stack.targets[1].faults.clear()
    assert answered(stack.targets)[0] == 8 and answered(stack.targets)[1] > 0


async def test_a_killed_target_fails_no_request(open_pool):
    stack = await open_pool()
    await stack.target_servers[0].grpc.stop(0)
    answers = [await stack.ask(prompt(number), route=FULL) for number in range(8)]
    assert [answer.token_ids for answer in answers] == [prompt(number)[::-1][:5] for number in range(8)]
    found = await replicas(stack)
    assert [each.healthy for each in found.values() if each.role == "target"].count(True) == 1


IS_FULL = raises(Overloaded("waiting_requests", 1, 1, 1.0))


async def test_a_full_target_is_replaced_by_another(open_pool):
    stack = await open_pool()
    stack.targets[0].faults.append(IS_FULL)
    for number in range(100):  # ports differ from run to run, and with them the target of a prompt
        assert (await stack.ask(prompt(number), route=FULL)).token_ids
        if not stack.targets[0].faults:
            break
    assert not stack.targets[0].faults


async def test_a_replica_that_reported_full_is_not_retried(open_pool):
    stack = await open_pool()
    for fake in (*stack.targets, *stack.drafts):
        fake.faults.extend([IS_FULL] * 3)
    refusal = await stack.refused(prompt(1), route=FULL)
    assert (refusal.code, refusal.reason, refusal.retry_after_s) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 1.0)
    assert answered(stack.targets) == [1, 1]
    for target in stack.targets:
        target.faults.clear()
    assert (await stack.ask(prompt(1), route=SPEC_PC)).reason == "DRAFT_OVERLOADED"
    assert answered(stack.drafts) == [1, 1]


async def own_of(stack, target):
    """The number of a prompt that goes to this target first."""
    for number in range(40):
        before = len(target.calls)
        await stack.ask(prompt(number), route=FULL, max_new_tokens=1)
        if len(target.calls) > before:
            return number
    raise AssertionError("no prompt is this target's own")


async def test_the_unreachable_replica_is_retried_rather_than_the_full_one(open_pool):
    stack = await open_pool()
    number = await own_of(stack, stack.targets[0])
    stack.targets[0].faults.extend([IS_FULL] * 3)
    stack.targets[1].faults.append(UNAVAILABLE)
    assert (await stack.ask(prompt(number), route=FULL)).token_ids
    assert len(stack.targets[0].faults) == 2 and not stack.targets[1].faults


async def test_a_refusal_by_grpc_itself_is_not_retried(open_pool):
    stack = await open_pool(targets=3)
    for target in stack.targets:
        target.faults.extend([aborts(grpc.StatusCode.RESOURCE_EXHAUSTED)] * 3)
    refusal = await stack.refused(prompt(1), route=FULL)
    assert refusal.code == "UNAVAILABLE" and sum(answered(stack.targets)) == 1


async def test_all_targets_are_unreachable(open_pool):
    stack = await open_pool()
    for server in stack.target_servers:
        await server.grpc.stop(0)
    refusal = await stack.refused(prompt(1), route=FULL)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_at_most_three_attempts(open_pool):
    stack = await open_pool(targets=5)
    for target in stack.targets:
        target.faults.extend([UNAVAILABLE] * 9)
    refusal = await stack.refused(prompt(1), route=FULL)
    assert refusal.code == "UNAVAILABLE" and sum(answered(stack.targets)) == 3
    assert max(answered(stack.targets)) == 1


async def test_other_errors_are_not_retried(open_pool):
    stack = await open_pool()
    for target in stack.targets:
        target.die_after = 0
        target.faults.append(raises(RuntimeError("poison")))
    refusal = await stack.refused(prompt(1), route=FULL)
    assert refusal.code == "UNAVAILABLE" and sum(answered(stack.targets)) == 1


@pytest.mark.parametrize("targets", [1, 2])
async def test_after_the_first_token_it_fails_and_says_how_many_had_come(open_stack, targets):
    stack = await open_stack(targets=targets)
    for target in stack.targets:
        target.die_after = 3
    call = stack.stub.Generate(request(prompt(1), route=FULL))
    events = []
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for event in call:
            events.append(event)
    from presift.rpc.status import error_of
    from presift_client.errors import Unavailable
    from presift_client.errors import error_of as clients

    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [event.delta.token_ids for event in events[1:]] == [[each] for each in prompt(1)[::-1][:3]]
    assert error_of(error.value).details["delivered_tokens"] == "3"
    told = clients(error.value)
    assert isinstance(told, Unavailable) and told.delivered_tokens == 3
    assert sum(answered(stack.targets)) == 1


async def test_another_draft_scores_if_one_is_unreachable(open_pool):
    stack = await open_pool()
    await stack.draft_servers[0].grpc.stop(0)
    answers = [await stack.ask(prompt(number), route=SPEC_PC) for number in range(6)]
    assert {(answer.route, answer.reason) for answer in answers} == {("SPEC_PC", "REQUESTED")}


async def test_a_conversation_stays_with_the_draft_that_holds_it(open_pool):
    stack = await open_pool(drafts=3)
    longest = [0, 0, 0]

    def keeps(number):
        def spoil(reply, request):
            reply.cached_tokens, longest[number] = min(longest[number], len(request.token_ids)), len(request.token_ids)

        return spoil

    for number, draft in enumerate(stack.drafts):
        draft.spoil = keeps(number)
    # Short turns, so that the affinity key changes with each.
    for talk in range(4):
        before, longest[:] = answered(stack.drafts), [0, 0, 0]
        for tokens in (200, 300, 450, 600, 800):
            assert (await stack.ask(prompt(talk, tokens), route=SPEC_PC)).route == "SPEC_PC"
        gained = [now - then for now, then in zip(answered(stack.drafts), before, strict=True)]
        assert sorted(gained) == [0, 0, 5], "every turn at one draft"


async def test_without_any_draft_it_is_full(open_pool):
    stack = await open_pool()
    for server in stack.draft_servers:
        await server.grpc.stop(0)
    answer = await stack.ask(prompt(1), route=SPEC_PC)
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_UNAVAILABLE")


async def test_a_slow_draft_is_hedged_once(open_pool):
    stack = await open_pool(drafts=3, draft_hedge_after_s=0.02)
    for draft in stack.drafts:
        draft.gate.clear()
    asking = asyncio.create_task(stack.ask(prompt(1), route=SPEC_PC))
    await stack.settle(lambda: sum(answered(stack.drafts)) == 2)
    await asyncio.sleep(0.2)
    assert sorted(answered(stack.drafts)) == [0, 1, 1]
    for draft in stack.drafts:
        draft.gate.set()
    assert (await asking).route == "SPEC_PC"


async def test_the_loser_of_a_hedge_is_cancelled(open_pool):
    stack = await open_pool(draft_hedge_after_s=0.05)
    for draft in stack.drafts:
        draft.faults.append(hangs)
    stack.drafts[1].faults.clear()
    for number in range(8):
        assert (await stack.ask(prompt(number), route=SPEC_PC)).route == "SPEC_PC"
    await stack.settle(lambda: stack.drafts[0].cancelled == 1)
    assert stack.drafts[1].cancelled == 0


async def test_no_hedge_by_default(open_pool):
    stack = await open_pool()
    for draft in stack.drafts:
        draft.gate.clear()
    asking = asyncio.create_task(stack.ask(prompt(1), route=SPEC_PC))
    await stack.settle(lambda: sum(answered(stack.drafts)) == 1)
    await asyncio.sleep(0.2)
    assert sum(answered(stack.drafts)) == 1
    for draft in stack.drafts:
        draft.gate.set()
    await asking


# -- who is left out, and who comes back --


async def test_a_replica_that_does_not_serve_gets_no_calls(open_pool):
    stack = await open_pool()
    await stack.target_servers[1].set_serving(False)
    away = address(stack.target_ports[1])
    await stack.settle(lambda: not health(stack)[away])
    for number in range(8):
        await stack.ask(prompt(number), route=FULL)
    assert answered(stack.targets) == [8, 0]
    await stack.target_servers[1].set_serving(True)
    await stack.settle(lambda: health(stack)[away] and not strangers(stack))
    for number in range(8):
        await stack.ask(prompt(number), route=FULL)
    assert answered(stack.targets)[1] > 0


def health(stack):
    return {each.address: each.is_healthy for each in stack.models.statuses()}


async def test_a_replica_with_another_model_is_not_used_and_shown(build):
    stack = await build(targets=2, drafts=2)
    stack.targets[1].model = model("target", revision="r2")
    stack.drafts[1].model = model("draft", tokenizer_fingerprint="f2", vocabulary_size=77)
    # Of one each, the one that is known when all were tried is the reference.
    for server in (stack.target_servers[1], stack.draft_servers[1]):
        await server.set_serving(False)
    await stack.connect()
    for server in (stack.target_servers[1], stack.draft_servers[1]):
        await server.set_serving(True)
    await stack.settle(lambda: not strangers(stack))
    for number in range(8):
        assert (await stack.ask(prompt(number), route=SPEC_PC)).route == "SPEC_PC"
    assert answered(stack.targets) == [8, 0] and answered(stack.drafts) == [8, 0]
    unused = [each.unused for each in (await replicas(stack)).values() if each.unused]
    assert unused == [
        "it has another tokenizer than those that are used",
        "it runs target at r2, not target at r1",
    ]


@pytest.fixture
def open_canary(build, monkeypatch):
    """options -> a connected stack of three targets whose first, with what `differs` says, was met before the others;
    and the times of its clock."""

    async def open_canary(differs, **options):
        stack = await build(targets=3, **options)
        times, pool = [0.0], stack.remote_target._pool
        pool._reference._clock, pool._resolve_every_s = (lambda: times[-1]), 0.01
        differs(stack.targets[0])
        for number, target in enumerate(stack.targets):
            target.replica = f"process {number}"
        for server in stack.target_servers[1:]:
            await server.set_serving(False)
        await stack.connect()
        for server in stack.target_servers[1:]:
            await server.set_serving(True)
        await stack.settle(lambda: not strangers(stack))
        return stack, times

    return open_canary


def newer(target):
    target.model = model("target", revision="r2")


def without_spec_kv(target):
    target.routes = ALL_ROUTES[:2]


async def test_the_first_target_decides_for_a_minute_only(open_canary, telemetry, caplog):
    stack, times = await open_canary(newer)
    before = telemetry.total("presift.replica.switches")
    canary = stack.targets[0]
    canary.pause_after = 1
    began = asyncio.create_task(stack.ask(prompt(1), route=FULL, max_new_tokens=4))
    await stack.settle(lambda: canary.running)
    times.append(MINORITY_S)
    await stack.settle(lambda: stack.models.target.model.revision == "r1")
    for number in range(8):
        assert (await stack.ask(prompt(number), route=FULL)).decision.target.revision == "r1"
    canary.gate.set()
    answer = await began
    assert answer.decision.target.revision == "r2" and len(answer.token_ids) == 4
    assert answered(stack.targets)[0] == 1 and sum(answered(stack.targets)) == 9
    assert telemetry.total("presift.replica.switches") == before + 1
    assert caplog.text.count("because most are of it: it runs target at r1, not target at r2") == 1
    info = await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
    assert info.target.revision == "r1"
    assert [each.unused for each in info.replicas if each.unused] == ["it runs target at r2, not target at r1"]


async def test_what_was_planned_for_a_target_is_answered_by_one_like_it(open_canary):
    stack, times = await open_canary(newer)
    stack.draft.gate.clear()
    began = asyncio.create_task(stack.ask(prompt(1), route=SPEC_PC))
    await stack.settle(lambda: stack.draft.calls)
    times.append(MINORITY_S)
    await stack.settle(lambda: stack.models.target.model.revision == "r1")
    stack.draft.gate.set()
    assert (await began).decision.target.revision == "r2" and answered(stack.targets) == [1, 0, 0]


async def test_a_failed_self_check_of_the_first_target_switches_no_route_off(open_canary):
    stack, times = await open_canary(without_spec_kv, routes=ALL_ROUTES)
    assert (await stack.refused(prompt(1), route=SPEC_KV)).reason == "ROUTE_UNSUPPORTED"
    times.append(MINORITY_S)
    await stack.settle(lambda: Route.SPEC_KV in stack.models.target.supported)
    for number in range(6):
        assert (await stack.ask(prompt(number), route=SPEC_KV)).route == "SPEC_KV"
    assert not stack.targets[0].calls


async def test_no_target_of_another_vocabulary_takes_over(open_canary):
    """This orchestrator tokenizes for one vocabulary alone."""

    def other(target):
        target.model = model("target", tokenizer_fingerprint="f2")

    stack, times = await open_canary(other, draft=model("draft", tokenizer_fingerprint="f2"))
    times.append(MINORITY_S)
    await asyncio.sleep(0.1)
    times.append(2 * MINORITY_S)
    await asyncio.sleep(0.1)
    assert (await stack.ask(prompt(1), route=FULL)).decision.target.tokenizer_fingerprint == "f2"


@pytest.mark.parametrize("named", ["target@r2", "target@r"])
async def test_the_target_that_is_named_is_used(build, named):
    stack = await build(targets=3, target_model=named)
    newer(stack.targets[2])
    if named == "target@r2":
        await stack.connect()
        await stack.settle(lambda: not strangers(stack))
        assert (await stack.ask(prompt(1), route=FULL)).decision.target.revision == "r2"
        unused = [each.unused for each in (await replicas(stack)).values() if each.unused]
        assert unused == ["it runs target at r1, but target_model is target@r2"] * 2
    else:  # the beginning of both revisions: most decide
        await stack.connect()
        assert stack.models.target.model.revision == "r1"


async def test_a_single_target_of_another_name_is_refused(build):
    stack = await build(target_model="target@r2")
    with pytest.raises(TargetUnavailable, match="it runs target at r1, but target_model is target@r2"):
        await stack.remote_target.info()
    newer(stack.target)
    assert (await stack.remote_target.info()).model.revision == "r2"


async def test_another_model_takes_over_when_the_first_drafts_are_gone(open_pool):
    stack = await open_pool()
    stack.drafts[1].model = model("draft", revision="r2")
    await stack.draft_servers[1].set_serving(False)
    await stack.settle(lambda: sum(health(stack).values()) == 3)
    await stack.draft_servers[1].set_serving(True)
    await stack.settle(lambda: any(each.unused for each in stack.models.statuses()))
    assert (await stack.ask(prompt(1), route=SPEC_PC)).decision.draft.revision == "r1"
    await stack.draft_servers[0].grpc.stop(0)
    await stack.settle(lambda: not any(each.unused for each in stack.models.statuses()))
    await stack.ask(prompt(2), route=SPEC_PC)  # full: the draft is another now
    await stack.settle(lambda: stack.models.draft is not None and stack.models.draft.revision == "r2")
    assert (await stack.ask(prompt(3), route=SPEC_PC)).decision.draft.revision == "r2"


async def test_the_breaker_opens_for_a_replica_that_keeps_failing(open_pool):
    stack = await open_pool()
    stack.targets[0].faults.extend([UNAVAILABLE] * 100)
    for number in range(60):
        assert (await stack.ask(prompt(number), route=FULL, max_new_tokens=1)).token_ids
    assert len(stack.targets[0].calls) == FAILURES
    found = await replicas(stack)
    assert found[address(stack.target_ports[0])].breaker == "open"


@pytest.fixture
def no_patience(monkeypatch):
    """A call may be judged at once: nobody waits a second in these tests."""
    monkeypatch.setattr(replica_module, "_MIN_WAIT_S", 0.0)


@pytest.fixture
def stays_open(monkeypatch):
    """An open breaker is open to the end of the test, however slow the machine is."""
    monkeypatch.setattr(pool_module, "OPEN_S", 3600.0)


def breaker(stack, port):
    return next(each.breaker for each in stack.models.statuses() if each.address == address(port))


async def test_the_breaker_opens_for_a_draft_that_hangs(open_pool, no_patience, stays_open, monkeypatch):
    # The draft's share of the time ends each hanging call; the answer in full has all the time that it needs.
    monkeypatch.setattr(draft_stage, "draft_share_s", lambda left_s, target_s: 0.5)
    stack = await open_pool()
    stack.drafts[0].faults.extend([hangs] * 100)
    for number in range(40):
        asked = stack.stub.Generate(request(prompt(number), route=SPEC_PC, max_new_tokens=1), timeout=60.0)
        assert [event async for event in asked]
    assert breaker(stack, stack.draft_ports[0]) == "open" and len(stack.drafts[0].calls) == FAILURES
    assert breaker(stack, stack.draft_ports[1]) == "closed"


async def test_the_breaker_opens_for_a_target_whose_callers_all_disconnect(open_pool, no_patience, stays_open):
    stack = await open_pool()
    stack.targets[0].faults.extend([hangs] * 100)
    for number in range(40):
        asking = asyncio.create_task(stack.ask(prompt(number), route=FULL, max_new_tokens=1))
        await stack.settle(lambda: asking.done() or stack.targets[0].running)  # noqa: B023
        asking.cancel()
        await asyncio.wait((asking,))
        await stack.settle(lambda: not stack.targets[0].running)
    assert breaker(stack, stack.target_ports[0]) == "open" and len(stack.targets[0].calls) == FAILURES
    assert breaker(stack, stack.target_ports[1]) == "closed"


async def test_the_breaker_counts_the_loser_of_a_hedge(open_pool, no_patience):
    stack = await open_pool(draft_hedge_after_s=0.02)
    stack.drafts[0].faults.extend([hangs] * 100)
    for number in range(40):
        assert (await stack.ask(prompt(number), route=SPEC_PC, max_new_tokens=1)).route == "SPEC_PC"
    assert breaker(stack, stack.draft_ports[0]) == "open"


async def test_get_info_shows_a_single_replica_too(stack):
    await stack.ask(prompt(1), route=SPEC_PC)
    found = await replicas(stack)
    assert {(each.role, each.healthy, each.breaker, each.in_flight, each.unused) for each in found.values()} == {
        ("draft", True, "closed", 0, ""),
        ("target", True, "closed", 0, ""),
    }
    assert set(found) == {address(port) for port in stack.ports.values()}


def test_a_stack_has_one_of_each_by_default():
    assert (Options().drafts, Options().targets) == (1, 1)


async def test_by_name(stack):
    """The system's own resolver; localhost may have a record where nobody listens."""
    from presift.core.generation import Sampling
    from presift.orchestrator.backends.target_client import TargetClient
    from presift.orchestrator.domain.ports import Usage
    from presift.rpc.deadline import Deadline

    target = TargetClient(f"dns:///localhost:{stack.ports['target']}", 2**20)
    assert (await target.info()).model.id == "target"
    call = target.generate(TargetRequest(ids(*prompt(1)), Sampling(max_new_tokens=2), ""), Deadline.within(20.0))
    events = [event async for event in call.read_ahead()]
    assert isinstance(events[-1], Usage)
    assert [event.token_ids for event in events[:-1]] == [(each,) for each in prompt(1)[::-1][:2]]
    assert address(stack.ports["target"]) in {each.address for each in target.statuses() if each.is_healthy}
    await target.aclose()


# -- the key --


def ids(*numbers):
    return np.array(numbers, dtype=np.uint32)


def test_the_affinity_key_depends_on_the_document():
    from presift.core.spans import Span

    document, a, b = np.arange(300, dtype=np.uint32), ids(7, 8, 9), ids(5)
    one = TokenizedPrompt(np.concatenate([a, document, b]), (Span(0, 3), Span(303, 304)))
    two = TokenizedPrompt(np.concatenate([b, document, a]), (Span(0, 1), Span(301, 304)))
    other = TokenizedPrompt(np.concatenate([a, document[::-1], b]), (Span(0, 3), Span(303, 304)))
    assert affinity_key(one) == affinity_key(two) != affinity_key(other)


def test_the_affinity_key_of_a_prompt_with_hardly_any_unprotected_tokens():
    from presift.core.spans import Span

    all_protected = TokenizedPrompt(np.arange(100, dtype=np.uint32), (Span(0, 100),))
    assert affinity_key(all_protected) == affinity_key(TokenizedPrompt(np.arange(100, dtype=np.uint32), ()))
    # A run of less than a block says too little: what follows counts as well.
    one, other = np.arange(100, dtype=np.uint32), np.arange(100, dtype=np.uint32)
    other[50:] += 1
    spans = (Span(0, 5), Span(9, 100))
    assert affinity_key(TokenizedPrompt(one, spans)) != affinity_key(TokenizedPrompt(other, spans))


async def test_the_breaker_opens_for_a_single_draft_that_keeps_failing(open_stack):
    stack = await open_stack()
    stack.draft.faults += [UNAVAILABLE] * 50
    for number in range(8):
        answer = await stack.ask(prompt(number), route=plan_pb2.ROUTE_SPEC_PC)
        assert (answer.route, answer.reason) == ("FULL", "DRAFT_UNAVAILABLE")
    assert "the draft failed repeatedly; the circuit breaker tries it again" in answer.decision.detail
    asked = len(stack.draft.calls)
    await stack.ask(prompt(99), route=plan_pb2.ROUTE_SPEC_PC)
    assert len(stack.draft.calls) == asked
