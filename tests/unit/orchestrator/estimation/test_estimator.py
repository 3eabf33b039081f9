"""What is learnt from answers, and what is under way."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecKv, SpecPc
from presift.orchestrator.domain.ports import FinishReason, TargetLoad, Usage
from presift.orchestrator.estimation.estimator import KEPT_PROMPTS, CostEstimator
from presift.orchestrator.estimation.observation import AnswerObservation
from presift.orchestrator.estimation.pending_work import PendingWork
from presift.orchestrator.estimation.target_load import TargetLoads
from presift.orchestrator.pipeline.pipeline import work_ms
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import DRAFT_SEED, CostCurve, TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Decision, Plan
from presift.orchestrator.routing.forecast import work_of

TARGET, DRAFT = (ModelInfo(name, "r1", "f", 32_768, 4, 2, 1000) for name in ("target", "draft"))
IDS = np.arange(2000, dtype=np.uint32) % 1000
PC, KV = SpecPc(500, start_layer=3, lookahead_tokens=5), SpecKv(200, lookahead_tokens=6)
USAGE = Usage(2000, 2000, 0, 21, FinishReason.LENGTH, 300.0)


def plan(route=Route.FULL, read=2000, policy=None, kv_plan=None, **changes):
    decision = Decision(
        route, Reason.REQUESTED, "", 2000, read, read, 0, TARGET, 1.0, policy, None if policy is None else DRAFT
    )
    kept = np.ones(2000, dtype=np.bool_)
    return Plan(replace(decision, **changes), IDS[:read], kept, (), kv_plan)


def answered(plan, usage=USAGE, was_alone=True):
    return AnswerObservation(plan, usage, 400.0, 1400.0, was_alone)


def compressed(**changes):
    changes = {"cache": CacheOutcome.MISS, "draft_ms": 90.0} | changes
    return plan(Route.SPEC_PC, 500, PC, **changes)


@pytest.fixture
def economy():
    return CostEstimator(reads_beside=True)


def outlook(economy):
    return economy.outlook(IDS, TARGET, DRAFT)


def test_a_full_answer_teaches_reading_decoding_and_the_prefix(economy):
    economy.observe(answered(plan()))
    speeds = outlook(economy).speeds
    assert speeds.target.ms(TokenWork(2000)) == pytest.approx(300, rel=0.02)
    assert speeds.decoding.ms(TokenWork(2000)) == pytest.approx(50, rel=0.02)
    assert speeds.draft == DRAFT_SEED and not speeds.is_measured
    assert outlook(economy).cached_tokens == 1984
    assert economy.outlook(IDS, replace(TARGET, revision="r2"), DRAFT).cached_tokens == 0


def test_a_draft_pass_is_learnt_and_a_hit_is_not(economy):
    economy.observe(answered(compressed(cache=CacheOutcome.HIT, draft_ms=0.0), replace(USAGE, ttft_ms=70.0)))
    assert outlook(economy).speeds.draft == DRAFT_SEED
    economy.observe(answered(compressed(), replace(USAGE, ttft_ms=70.0)))
    speeds = outlook(economy).speeds
    assert speeds.is_measured and speeds.draft.ms(TokenWork(2000, steps=4)) == pytest.approx(90, rel=0.02)
    assert speeds.target.ms(TokenWork(500)) == pytest.approx(70, rel=0.02)


def test_choosing_is_not_counted_as_reading(economy):
    kv_plan = KvPlan(KV, (), (1, 2, 3, 4, 5, 6))
    usage = replace(USAGE, kv_tokens=201, score_ms=40.0, publish_ms=10.0)
    economy.observe(answered(plan(Route.SPEC_KV, 2000, KV, kv_plan, cache=CacheOutcome.MISS, draft_ms=9.0), usage))
    speeds = outlook(economy).speeds
    assert speeds.target.ms(TokenWork(2006)) == pytest.approx(250, rel=0.02)
    assert speeds.scoring.ms(TokenWork(38, 2000)) == pytest.approx(50, rel=0.02)
    assert outlook(economy).cached_tokens == 1984


def test_what_is_freed_is_not_expected(economy):
    kv_plan = KvPlan(KV, (), (1,), keep_full_prefix=False)
    economy.observe(answered(plan(Route.SPEC_KV, 2000, KV, kv_plan, cache=CacheOutcome.HIT)))
    assert outlook(economy).cached_tokens == 0


@pytest.mark.parametrize(
    "answer",
    [
        answered(plan(), was_alone=False),
        answered(plan(), replace(USAGE, reused_entry=True)),
        answered(plan(continued=True)),
    ],
    ids=["not alone", "reused", "continued"],
)
def test_times_that_say_nothing_of_reading(economy, answer):
    economy.observe(answer)
    assert outlook(economy).speeds.target.observations == 0


def test_side_by_side_teaches_contention_once_the_draft_is_known(economy):
    """Alone the draft takes 92 ms and the target 156; together they took 200."""
    economy.observe(answered(plan(read=1000), replace(USAGE, ttft_ms=150.0)))
    economy.observe(answered(compressed(), replace(USAGE, ttft_ms=70.0)))
    before = outlook(economy).speeds
    side = plan(
        Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1,)), cache=CacheOutcome.MISS, draft_ms=400.0, prefill_ms=150.0
    )
    economy.observe(answered(side, replace(USAGE, cached_tokens=1999)))
    after = outlook(economy).speeds
    assert after.draft == before.draft and before.contention == 0 < after.contention <= 1


def test_a_compressed_prompt_is_known_by_its_policy(economy):
    economy.drafted(IDS, compressed())
    assert outlook(economy).compressed == ((PC.canonical(), 0),)
    economy.observe(answered(compressed(), replace(USAGE, prompt_tokens=500)))
    assert outlook(economy).compressed == ((PC.canonical(), 448),)
    assert economy.outlook(IDS[:1999], TARGET, DRAFT).compressed == ()
    economy.drafted(IDS[:100], plan())  # nothing was compressed
    for number in range(KEPT_PROMPTS):
        economy.drafted(IDS[: number + 1], compressed())
    assert outlook(economy).compressed == ()


def test_seeds_stay_where_nothing_is_to_be_learnt():
    economy = CostEstimator(learns=False)
    economy.observe(answered(plan()))
    assert outlook(economy).speeds.target.observations == 0 and outlook(economy).cached_tokens == 1984


def test_a_queue_by_hand():
    queue = PendingWork()
    with queue.working(100.0) as first:
        assert queue.wait_ms == 50
        with queue.working(40.0) as second:
            assert queue.wait_ms == 90 and not first.was_alone and not second.was_alone
            queue.done(first)
            queue.done(first)
            assert queue.wait_ms == 20
    assert queue.wait_ms == 0
    with pytest.raises(RuntimeError), queue.working(5.0) as third:
        assert third.was_alone
        raise RuntimeError
    assert queue.wait_ms == 0


def test_what_several_wait_for_is_done_once():
    queue = PendingWork()
    with queue.working(100.0, "a") as first, queue.working(100.0, "a"), queue.working(40.0), queue.working(40.0):
        assert (queue.wait_ms, len(queue)) == (130, 3)
        queue.done(first)  # the other still waits for it
        assert (queue.wait_ms, len(queue)) == (130, 3)
    assert (queue.wait_ms, len(queue)) == (0, 0)


def chosen(economy, ids, route, policy=None):
    """What the planner chose: the wait that stands before it is part of the forecast."""
    choice, now = RouteChoice(route, Reason.REQUESTED, "", policy, True), economy.outlook(ids, TARGET, DRAFT)
    return replace(choice, forecast=now.forecast(work_of(choice, len(ids), now)))


def test_equal_readings_wait_for_each_other_once(economy):
    with ExitStack() as under_way:
        for count in range(6):
            forecast = chosen(economy, IDS, Route.FULL).forecast
            waits_ms = max(0.0, count - 0.5) * forecast.target_work_ms
            assert forecast.target_ms == pytest.approx(waits_ms + forecast.target_work_ms)
            under_way.enter_context(economy.reading.working(work_ms(plan(forecast=forecast))))
    assert economy.reading.wait_ms == 0


def test_equal_drafts_wait_for_each_other_once(economy):
    with ExitStack() as under_way:
        for count in range(6):
            choice = chosen(economy, IDS + count, Route.SPEC_KV, KV)
            draft_ms, beside_ms = choice.forecast.draft_work_ms, choice.forecast.beside_work_ms
            waits = max(0.0, count - 0.5)
            assert choice.forecast.draft_ms == pytest.approx((waits + 1) * draft_ms)
            assert economy.reading.wait_ms == pytest.approx(waits * beside_ms) and beside_ms > 0
            under_way.enter_context(economy.compressing(IDS + count, choice))
    assert economy.drafting.wait_ms == economy.reading.wait_ms == 0


def test_who_shares_a_draft_pass_adds_none(economy):
    choice = chosen(economy, IDS, Route.SPEC_KV, KV)
    with ExitStack() as under_way:
        for _ in range(5):
            under_way.enter_context(economy.compressing(IDS, choice))
        assert economy.drafting.wait_ms == choice.forecast.draft_work_ms / 2
        assert economy.reading.wait_ms == choice.forecast.beside_work_ms / 2
        under_way.enter_context(economy.compressing(IDS, chosen(economy, IDS, Route.SPEC_PC, PC)))
        assert economy.drafting.wait_ms > choice.forecast.draft_work_ms
    known = chosen(economy, IDS, Route.FULL)
    with economy.compressing(IDS, known), economy.compressing(IDS, replace(known, forecast=None)):
        assert len(economy.drafting) == len(economy.reading) == 0


def test_waiting_for_the_draft_is_not_learnt_as_its_speed(economy):
    busy = compressed(draft_ms=5090.0, draft_queue_ms=5000.0)
    economy.observe(answered(busy, replace(USAGE, ttft_ms=70.0)))
    before = outlook(economy).speeds
    assert before.draft.ms(TokenWork(2000, steps=4)) == pytest.approx(90, rel=0.02)
    # A draft that waited did not work beside the target.
    side = plan(
        Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1,)), cache=CacheOutcome.MISS, draft_ms=5400.0, prefill_ms=150.0
    )
    for waited_ms, contention in ((5000.0, 0), (400.0, 1)):
        changed = replace(side, decision=replace(side.decision, draft_queue_ms=waited_ms))
        economy.observe(answered(changed, replace(USAGE, cached_tokens=1999)))
        assert outlook(economy).speeds.contention == contention


def test_waiting_for_ours_is_not_taken_for_what_a_reading_takes():
    loads = TargetLoads()
    economy = CostEstimator(loads=loads)
    said = replace(USAGE, load=TargetLoad(1, 3, 700))
    economy.observe(answered(plan(), replace(said, ttft_ms=9000.0), was_alone=False))
    assert outlook(economy).load.target_ms == 0 and outlook(economy).free_kv_tokens == 700
    economy.observe(answered(plan(), said))
    assert outlook(economy).load.target_ms == 900


def test_curves_need_no_more_than_they_say():
    assert CostCurve(1.0, 2.0, 3.0).weights == (1.0, 2.0, 3.0, 0.0)


def test_an_answer_is_part_of_the_next_prompt(economy):
    economy.observe(replace(answered(plan()), token_ids=tuple(range(200))))
    later = np.concatenate([IDS, np.arange(200, dtype=np.uint32), IDS[:50]])
    other = np.concatenate([IDS, np.arange(1, 201, dtype=np.uint32)])
    expected = [economy.outlook(ids, TARGET, DRAFT).cached_tokens for ids in (later, later[:2199], IDS, other)]
    # 2,000 + 199 tokens: the last one of an answer is never read.
    assert expected == [2176, 2176, 1984, 1984]


def selected(usage=USAGE, **changes):
    given = {"cache": CacheOutcome.MISS, "draft_ms": 9.0} | changes
    usage = replace(usage, kv_tokens=201, score_ms=40.0, publish_ms=10.0)
    return answered(plan(Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1, 2)), **given), usage)


def test_an_entry_of_the_target_is_known_until_it_is_seen_to_be_gone(economy):
    answer = selected()
    economy.drafted(IDS, answer.plan)
    assert outlook(economy).entries == frozenset() and outlook(economy).compressed
    economy.observe(answer)
    assert outlook(economy).entries == {KV.canonical()}
    assert economy.outlook(IDS, replace(TARGET, revision="r2"), DRAFT).entries == frozenset()
    assert economy.outlook(IDS[:1999], TARGET, DRAFT).entries == frozenset()
    reused = replace(USAGE, kv_tokens=201, cached_tokens=200, reused_entry=True)
    hit = plan(Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1, 2)), cache=CacheOutcome.HIT)
    economy.observe(answered(hit, reused))
    assert outlook(economy).entries == {KV.canonical()}
    # It scored again: what was in between is more than the target holds.
    economy.observe(answered(replace(plan(), read_ids=IDS + 7)))
    economy.observe(selected())
    known = outlook(economy).entries
    economy.observe(answered(replace(plan(), read_ids=IDS + 9)))
    assert known == {KV.canonical()} and outlook(economy).entries == frozenset()


def test_a_reused_entry_does_not_say_that_the_prompt_was_read():
    economy = CostEstimator()
    hit = plan(Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1, 2)), cache=CacheOutcome.HIT)
    economy.observe(answered(hit, replace(USAGE, cached_tokens=200, reused_entry=True)))
    assert outlook(economy).cached_tokens == 0


def test_a_turn_that_goes_on_makes_no_entry_known(economy):
    economy.drafted(IDS, selected().plan)
    economy.observe(selected(continued=True))
    assert outlook(economy).entries == frozenset()


def test_replicas_are_kept_apart():
    economy = CostEstimator()
    economy.observe(answered(plan(), replace(USAGE, replica="a")))
    economy.observe(answered(replace(plan(), read_ids=IDS + 5), replace(USAGE, ttft_ms=900.0, replica="b")))
    at = economy.outlooks(IDS, TARGET, DRAFT, ("a", "b", "new"))
    assert [at[each].cached_tokens for each in at] == [1984, 0, 0]
    took_ms = [at[each].speeds.target.ms(TokenWork(2000)) for each in at]
    assert took_ms == pytest.approx([300, 900, 900], rel=0.02)
    # Behind one address, where either may answer: no more than both hold.
    assert outlook(economy) == at["b"]
    economy.observe(answered(plan(), replace(USAGE, cached_tokens=1999, replica="a")))
    assert outlook(economy).cached_tokens == 0
    for _ in range(32):  # b is gone
        economy.observe(answered(plan(), replace(USAGE, cached_tokens=1999, replica="a")))
    assert outlook(economy).cached_tokens == 1984
    assert {each.location for each in economy.learnt()} == {"target@r1#a", "target@r1#b"}


def test_a_caller_who_varies_the_budget_does_not_fill_the_memory():
    economy = CostEstimator()
    for capacity in range(100, 400):
        policy = SpecPc(capacity)
        economy.drafted(IDS, plan(Route.SPEC_PC, capacity, policy, cache=CacheOutcome.MISS))
    known = outlook(economy).compressed
    assert len(known) == 8 and known[-1][0].capacity == 399


def test_what_others_read_meanwhile_is_no_evidence():
    economy = CostEstimator()
    economy.observe(answered(plan(), USAGE))
    other = replace(plan(), read_ids=IDS + 7)
    began = economy.now
    for _ in range(2):  # at once: neither found what the other was reading
        economy.observe(replace(answered(other, replace(USAGE, cached_tokens=0)), began=began))
    assert outlook(economy).cached_tokens == 1984


def test_an_answer_holds_its_slots_at_its_replica_when_nothing_waits_there(economy):
    with economy.reading_at("b").working(500.0), economy.loads.answering(900.0, 77, "b"):
        both = economy.outlooks(IDS, TARGET, DRAFT, ("a", "b"))
        assert [both[name].load.target_ms for name in "ab"] == [0.0, 250.0]
    with economy.loads.answering(900.0, 77, "b"):  # it has begun to answer: its queue is empty, and forgotten
        economy.reading_at("c")
        both = economy.outlooks(IDS, TARGET, DRAFT, ("a", "b"))
        assert [[each.kv_tokens for each in both[name].answers] for name in "ab"] == [[], [77]]
        assert both["b"].load.target_ms == 0.0
