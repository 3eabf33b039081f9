"""What the estimator learns from answers, and the pending work."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from presift.core.generation import EngineLoad, FinishReason
from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecKv, SpecPc
from presift.orchestrator.domain.ports import ReplicaRef, Usage
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.estimation import estimator as module
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.observation import AnswerObservation
from presift.orchestrator.estimation.pending_work import PendingWork
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.estimation.target_load import TargetLoads
from presift.orchestrator.routing.choice import Reason, RouteChoice
from presift.orchestrator.routing.cost_model import DRAFT_SEED, CostCurve, RunningAnswer, TokenWork
from presift.orchestrator.routing.decision import CacheOutcome, Decision, Plan
from presift.orchestrator.routing.forecast import work_of

from ....held_bytes import held_bytes

TARGET, DRAFT = (ModelInfo(name, "r1", "f", 32_768, 4, 2, 1000) for name in ("target", "draft"))
IDS = np.arange(2000, dtype=np.uint32) % 1000
PROMPT = TokenizedPrompt(IDS, ())
PC, KV = SpecPc(500, start_layer=3, lookahead_tokens=5), SpecKv(200, lookahead_tokens=6)
USAGE = Usage(2000, 0, 21, FinishReason.LENGTH, 2000, ttft_ms=300.0)


def plan(route=Route.FULL, read=2000, policy=None, kv_plan=None, **changes):
    decision = Decision(
        route, Reason.REQUESTED, "", 2000, read, read, 0, TARGET, 1.0, policy, None if policy is None else DRAFT
    )
    kept = np.ones(2000, dtype=np.bool_)
    return Plan(replace(decision, **changes), IDS[:read], kept, PROMPT, kv_plan)


def of(ids, plan):
    """The same plan for another prompt."""
    return replace(plan, tokens=TokenizedPrompt(ids, ()))


def answered(plan, usage=USAGE, was_uncontended=True):
    return AnswerObservation(plan, usage, 400.0, 1400.0, was_uncontended)


def compressed(**changes):
    changes = {"cache": CacheOutcome.MISS, "draft_ms": 90.0} | changes
    return plan(Route.SPEC_PC, 500, PC, **changes)


@pytest.fixture
def estimator():
    return CostEstimator(prefills=True)


def state(estimator):
    return estimator.state(IDS, TARGET, DRAFT)


def test_a_full_answer_teaches_reading_decoding_and_the_prefix(estimator):
    estimator.observe(answered(plan()))
    costs = state(estimator).costs
    assert costs.target.ms(TokenWork(2000)) == pytest.approx(300, rel=0.02)
    assert costs.decoding.ms(TokenWork(2000)) == pytest.approx(50, rel=0.02)
    assert costs.draft == DRAFT_SEED and not costs.is_observed
    assert state(estimator).cached_tokens == 1984
    assert estimator.state(IDS, replace(TARGET, revision="r2"), DRAFT).cached_tokens == 0


def test_a_draft_pass_is_learned_and_a_hit_is_not(estimator):
    estimator.observe(answered(compressed(cache=CacheOutcome.HIT, draft_ms=0.0), replace(USAGE, ttft_ms=70.0)))
    assert state(estimator).costs.draft == DRAFT_SEED
    estimator.observe(answered(compressed(), replace(USAGE, ttft_ms=70.0)))
    costs = state(estimator).costs
    assert costs.is_observed and costs.draft.ms(TokenWork(2000, steps=4)) == pytest.approx(90, rel=0.02)
    assert costs.target.ms(TokenWork(500)) == pytest.approx(70, rel=0.02)


def test_selection_is_not_counted_as_reading(estimator):
    kv_plan = KvPlan(KV, (), (1, 2, 3, 4, 5, 6))
    usage = replace(USAGE, kv_tokens=201, score_ms=40.0, publish_ms=10.0)
    estimator.observe(answered(plan(Route.SPEC_KV, 2000, KV, kv_plan, cache=CacheOutcome.MISS, draft_ms=9.0), usage))
    costs = state(estimator).costs
    assert costs.target.ms(TokenWork(2006)) == pytest.approx(250, rel=0.02)
    assert costs.selection.ms(TokenWork(38, 2000)) == pytest.approx(50, rel=0.02)
    assert state(estimator).cached_tokens == 1984


def test_a_freed_prefix_is_not_expected(estimator):
    kv_plan = KvPlan(KV, (), (1,), keep_full_prefix=False)
    estimator.observe(answered(plan(Route.SPEC_KV, 2000, KV, kv_plan, cache=CacheOutcome.HIT)))
    assert state(estimator).cached_tokens == 0


@pytest.mark.parametrize(
    "answer",
    [
        answered(plan(), was_uncontended=False),
        answered(plan(), replace(USAGE, reused_entry=True)),
        answered(plan(continued=True)),
    ],
    ids=["not alone", "reused", "continued"],
)
def test_answers_whose_time_is_no_measure_of_reading(estimator, answer):
    estimator.observe(answer)
    assert state(estimator).costs.target.observations == 0


def test_side_by_side_teaches_contention_once_the_draft_is_known(estimator):
    """Alone the draft takes 92 ms and the target 156; together they took 200."""
    estimator.observe(answered(plan(read=1000), replace(USAGE, ttft_ms=150.0)))
    estimator.observe(answered(compressed(), replace(USAGE, ttft_ms=70.0)))
    before = state(estimator).costs
    side = plan(
        Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1,)), cache=CacheOutcome.MISS, draft_ms=400.0, prefill_ms=150.0
    )
    estimator.observe(answered(side, replace(USAGE, cached_tokens=1999)))
    after = state(estimator).costs
    assert after.draft == before.draft and before.contention == 0 < after.contention <= 1


def test_a_compressed_prompt_is_known_by_its_policy(estimator):
    estimator.record_compressed(compressed())
    assert state(estimator).compressed == ((PC, 0),)
    estimator.observe(answered(compressed(), replace(USAGE, prompt_tokens=500)))
    assert state(estimator).compressed == ((PC, 448),)
    assert estimator.state(IDS[:1999], TARGET, DRAFT).compressed == ()
    estimator.record_compressed(of(IDS[:100], plan()))  # nothing was compressed


@pytest.mark.parametrize("read", [64, 2000])
def test_compressed_prompts_are_bounded_in_bytes(monkeypatch, read):
    monkeypatch.setattr(module, "COMPRESSED_BYTES", 1_000_000)
    estimator = CostEstimator()
    estimator.record_compressed(compressed())
    with held_bytes() as held:
        for number in range(600):
            policy = SpecPc(500 + number % 10, lookahead_tokens=5)
            made = plan(Route.SPEC_PC, read, policy, cache=CacheOutcome.MISS, draft_ms=90.0)
            estimator.record_compressed(of(IDS[: number + 1], made))
        estimator._prefixes = PrefixIndex()  # blocks and hashes have memories of their own
    assert len(estimator._compressed) > 100 and held() <= 1_000_000
    assert state(estimator).compressed == ()


def test_without_learning_the_seeds_stay():
    estimator = CostEstimator(learns=False)
    estimator.observe(answered(plan()))
    assert state(estimator).costs.target.observations == 0 and state(estimator).cached_tokens == 1984


def test_pending_work_by_hand():
    queue = PendingWork()
    with queue.working(100.0) as first:
        assert queue.wait_ms == 50
        with queue.working(40.0) as second:
            assert queue.wait_ms == 90 and not first.was_uncontended and not second.was_uncontended
            first.done()
            first.done()
            assert queue.wait_ms == 20
    assert queue.wait_ms == 0
    with pytest.raises(RuntimeError), queue.working(5.0) as third:
        assert third.was_uncontended
        raise RuntimeError
    assert queue.wait_ms == 0


def test_shared_work_counts_once():
    queue = PendingWork()
    with queue.working(100.0, "a") as first, queue.working(100.0, "a"), queue.working(40.0), queue.working(40.0):
        assert (queue.wait_ms, len(queue)) == (130, 3)
        first.done()  # another request waits for it
        assert (queue.wait_ms, len(queue)) == (130, 3)
    assert (queue.wait_ms, len(queue)) == (0, 0)


def chosen(estimator, ids, route, policy=None):
    """The planner's choice; its forecast includes the wait."""
    choice, now = RouteChoice(route, Reason.REQUESTED, "", policy, True), estimator.state(ids, TARGET, DRAFT)
    return replace(choice, forecast=now.forecast(work_of(choice, len(ids), now)))


def test_answers_wait_for_each_other_once(estimator):
    with ExitStack() as under_way:
        for count in range(6):
            forecast = chosen(estimator, IDS, Route.FULL).forecast
            waits_ms = max(0.0, count - 0.5) * forecast.target_work_ms
            assert forecast.target_ms == pytest.approx(waits_ms + forecast.target_work_ms)
            under_way.enter_context(estimator.answering(plan(forecast=forecast), 10))
    assert estimator.reading.wait_ms == 0


def test_drafts_and_prefills_wait_for_each_other_once(estimator):
    with ExitStack() as under_way:
        for count in range(6):
            choice = chosen(estimator, IDS + count, Route.SPEC_KV, KV)
            draft_ms, prefill_ms = choice.forecast.draft_work_ms, choice.forecast.prefill_work_ms
            waits = max(0.0, count - 0.5)
            assert choice.forecast.draft_ms == pytest.approx((waits + 1) * draft_ms)
            assert estimator.reading.wait_ms == pytest.approx(waits * prefill_ms) and prefill_ms > 0
            under_way.enter_context(estimator.compressing(TokenizedPrompt(IDS + count, ()), choice))
    assert estimator.drafting.wait_ms == estimator.reading.wait_ms == 0


def test_a_shared_draft_pass_adds_no_work(estimator):
    choice = chosen(estimator, IDS, Route.SPEC_KV, KV)
    with ExitStack() as under_way:
        for _ in range(5):
            under_way.enter_context(estimator.compressing(PROMPT, choice))
        assert estimator.drafting.wait_ms == choice.forecast.draft_work_ms / 2
        assert estimator.reading.wait_ms == choice.forecast.prefill_work_ms / 2
        under_way.enter_context(estimator.compressing(PROMPT, chosen(estimator, IDS, Route.SPEC_PC, PC)))
        assert estimator.drafting.wait_ms > choice.forecast.draft_work_ms
    known = chosen(estimator, IDS, Route.FULL)
    with (
        estimator.compressing(PROMPT, known),
        estimator.compressing(PROMPT, replace(known, forecast=None)),
    ):
        assert len(estimator.drafting) == len(estimator.reading) == 0


def test_the_wait_for_the_draft_is_not_learned_as_its_cost(estimator):
    busy = compressed(draft_ms=5090.0, draft_queue_ms=5000.0)
    estimator.observe(answered(busy, replace(USAGE, ttft_ms=70.0)))
    before = state(estimator).costs
    assert before.draft.ms(TokenWork(2000, steps=4)) == pytest.approx(90, rel=0.02)
    # A draft that waited did not work at the same time as the target.
    side = plan(
        Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1,)), cache=CacheOutcome.MISS, draft_ms=5400.0, prefill_ms=150.0
    )
    for waited_ms, contention in ((5000.0, 0), (400.0, 1)):
        changed = replace(side, decision=replace(side.decision, draft_queue_ms=waited_ms))
        estimator.observe(answered(changed, replace(USAGE, cached_tokens=1999)))
        assert state(estimator).costs.contention == contention


def test_waiting_for_own_requests_is_not_learned_as_reading():
    loads = TargetLoads()
    estimator = CostEstimator(loads=loads)
    loaded = replace(USAGE, load=EngineLoad(1, 3, 700))
    estimator.observe(answered(plan(), replace(loaded, ttft_ms=9000.0), was_uncontended=False))
    assert state(estimator).queued.target_ms == 0 and state(estimator).free_kv_tokens == 700
    estimator.observe(answered(plan(), loaded))
    assert state(estimator).queued.target_ms == 900


def test_a_curve_has_four_weights():
    assert CostCurve(1.0, 2.0, 3.0).weights == (1.0, 2.0, 3.0, 0.0)


def test_an_answer_is_part_of_the_next_prompt(estimator):
    estimator.observe(replace(answered(plan()), token_ids=tuple(range(200))))
    later = np.concatenate([IDS, np.arange(200, dtype=np.uint32), IDS[:50]])
    other = np.concatenate([IDS, np.arange(1, 201, dtype=np.uint32)])
    expected = [estimator.state(ids, TARGET, DRAFT).cached_tokens for ids in (later, later[:2199], IDS, other)]
    # 2,000 + 199 tokens: the last one of an answer is never read.
    assert expected == [2176, 2176, 1984, 1984]


def selected(usage=USAGE, **changes):
    given = {"cache": CacheOutcome.MISS, "draft_ms": 9.0} | changes
    usage = replace(usage, kv_tokens=201, score_ms=40.0, publish_ms=10.0)
    return answered(plan(Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1, 2)), **given), usage)


def renewed(renewals, policy, usage=USAGE, **reported):
    """An answer of 21 tokens in 1,000 ms that selected KV while it was generated."""
    usage = replace(usage, kv_tokens=201, renewals=renewals, **reported)
    return answered(plan(Route.SPEC_KV, 2000, policy, KvPlan(policy, ())), usage)


def test_an_answer_that_began_on_the_full_kv_teaches_what_full_teaches(estimator):
    policy = SpecKv(200, lookahead_tokens=0, first_full_tokens=4)
    answer = renewed(1, policy, score_ms=40.0, publish_ms=10.0, kv_tokens_mean=500.5)
    estimator.record_compressed(answer.plan)
    estimator.observe(answer)
    costs = state(estimator).costs
    assert costs.target.ms(TokenWork(2000)) == pytest.approx(300, rel=0.02)
    assert costs.selection.ms(TokenWork(32, 2000)) == pytest.approx(50, rel=0.02)
    reading_ms = costs.target.ms(TokenWork(32, 2000))
    assert costs.decoding.ms(TokenWork(490)) == pytest.approx((1000 - 50 - reading_ms) / 20, rel=0.02)
    assert state(estimator).entries == frozenset() and state(estimator).compressed == ()
    assert state(estimator).cached_tokens == 1984


def test_renewals_share_the_time_of_all_selections(estimator):
    policy = replace(KV, renew_every=6)
    estimator.observe(renewed(3, policy, score_ms=180.0, publish_ms=20.0))
    costs = state(estimator).costs
    assert costs.target.ms(TokenWork(2000)) == pytest.approx(250, rel=0.02)
    assert costs.selection.ms(TokenWork(32, 2000)) == pytest.approx(50, rel=0.2)
    reading_ms = costs.target.ms(TokenWork(32, 2000))
    assert costs.decoding.ms(TokenWork(201)) == pytest.approx((1000 - 3 * (50 + reading_ms)) / 20, rel=0.02)
    reused = renewed(4, policy, score_ms=180.0, publish_ms=20.0, reused_entry=True)
    estimator.observe(reused)
    assert state(estimator).costs.target == costs.target


def test_how_often_answers_are_renewed_early_is_learned(estimator):
    policy = replace(KV, renew_every=7)
    seen = [state(estimator).costs.early_renewals]
    # In 21 tokens three renewals come by the interval. What a faulty target reports is bounded.
    for made in (5, 3, 10**9):
        estimator.observe(renewed(made, policy))
        seen.append(state(estimator).costs.early_renewals)
    assert seen == pytest.approx([0.0, 2 / 21, 1 / 21, 2 / 21])
    assert [each.early_renewals for each in estimator.learned() if each.stage == "decoding"] == pytest.approx([2 / 21])

    nothing = ({"renew_every": 11}, {"first_full_tokens": 8}, {"renew_every": 0})
    for made in [renewed(0, replace(policy, **each)) for each in nothing] + [renewed(0, policy, renewals_skipped=3)]:
        estimator.observe(made)
        assert state(estimator).costs.early_renewals == pytest.approx(2 / 21)
    for _ in range(4):
        estimator.observe(renewed(0, policy))
    assert state(estimator).costs.early_renewals == 0.0


def test_decoding_is_not_learned_from_an_answer_that_mostly_renewed(estimator):
    before = state(estimator).costs.decoding
    estimator.observe(renewed(20, replace(KV, renew_every=1), score_ms=900.0))
    assert state(estimator).costs.decoding == before and state(estimator).costs.selection.observations == 2


@pytest.mark.parametrize(("accepted", "steps"), [(0, 20), (1, 20), (10, 11), (17, 4)])
def test_accepted_tokens_are_no_decode_steps(estimator, accepted, steps):
    estimator.observe(renewed(0, KV, accepted_tokens=accepted))
    assert state(estimator).costs.decoding.ms(TokenWork(201)) == pytest.approx(1000 / steps, rel=0.02)


def test_an_entry_is_the_same_whatever_renews(estimator):
    renewing = replace(KV, renew_every=6, renew_window=9)
    made = plan(Route.SPEC_KV, 2000, renewing, KvPlan(renewing, (), (1, 2)), cache=CacheOutcome.MISS)
    estimator.record_compressed(made)
    estimator.observe(answered(made, replace(USAGE, kv_tokens=201, score_ms=40.0, publish_ms=10.0)))
    assert state(estimator).entries == {KV} and dict(state(estimator).compressed).keys() == {KV}


def test_an_entry_is_expected_until_it_is_seen_to_be_gone(estimator):
    answer = selected()
    estimator.record_compressed(answer.plan)
    assert state(estimator).entries == frozenset() and state(estimator).compressed
    estimator.observe(answer)
    assert state(estimator).entries == {KV}
    assert estimator.state(IDS, replace(TARGET, revision="r2"), DRAFT).entries == frozenset()
    assert estimator.state(IDS[:1999], TARGET, DRAFT).entries == frozenset()
    assert estimator.entries(IDS, TARGET) == {KV} and not estimator.entries(IDS[:1999], TARGET)
    assert not estimator.entries(IDS, TARGET, salt="other") and not estimator.entries(IDS, TARGET, replica="b")
    reused = replace(USAGE, kv_tokens=201, cached_tokens=200, reused_entry=True)
    hit = plan(Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1, 2)), cache=CacheOutcome.HIT)
    estimator.observe(answered(hit, reused))
    assert state(estimator).entries == {KV}
    # It scored again: the target holds less than was read in between.
    estimator.observe(answered(replace(plan(), read_ids=IDS + 7)))
    estimator.observe(selected())
    known = state(estimator).entries
    estimator.observe(answered(replace(plan(), read_ids=IDS + 9)))
    assert known == {KV} and state(estimator).entries == frozenset()


def test_a_reused_entry_does_not_imply_that_the_prompt_was_read():
    estimator = CostEstimator()
    hit = plan(Route.SPEC_KV, 2000, KV, KvPlan(KV, (), (1, 2)), cache=CacheOutcome.HIT)
    estimator.observe(answered(hit, replace(USAGE, cached_tokens=200, reused_entry=True)))
    assert state(estimator).cached_tokens == 0


def test_a_later_turn_makes_no_entry_known(estimator):
    estimator.record_compressed(selected().plan)
    estimator.observe(selected(continued=True))
    assert state(estimator).entries == frozenset()


def test_replicas_are_learned_separately():
    estimator = CostEstimator()
    estimator.observe(answered(plan(), replace(USAGE, replica="a")))
    estimator.observe(answered(replace(plan(), read_ids=IDS + 5), replace(USAGE, ttft_ms=900.0, replica="b")))
    at = {each: estimator.state(IDS, TARGET, DRAFT, replica=each) for each in ("a", "b", "new")}
    assert [at[each].cached_tokens for each in at] == [1984, 0, 0]
    took_ms = [at[each].costs.target.ms(TokenWork(2000)) for each in at]
    assert took_ms == pytest.approx([300, 900, 900], rel=0.02)
    # Behind one address either may answer: the least useful one counts.
    assert state(estimator) == at["b"]
    estimator.observe(answered(plan(), replace(USAGE, cached_tokens=1999, replica="a")))
    assert state(estimator).cached_tokens == 0
    for _ in range(32):  # b is gone
        estimator.observe(answered(plan(), replace(USAGE, cached_tokens=1999, replica="a")))
    assert state(estimator).cached_tokens == 1984
    assert {each.location for each in estimator.learned()} == {"target@r1#a", "target@r1#b"}


def test_policies_per_prompt_are_bounded():
    estimator = CostEstimator()
    for capacity in range(100, 400):
        policy = SpecPc(capacity)
        estimator.record_compressed(plan(Route.SPEC_PC, capacity, policy, cache=CacheOutcome.MISS))
    known = state(estimator).compressed
    assert len(known) == 8 and known[-1][0].capacity == 399


def test_concurrent_readings_are_no_evidence_of_eviction():
    estimator = CostEstimator()
    estimator.observe(answered(plan(), USAGE))
    other = replace(plan(), read_ids=IDS + 7)
    began = estimator.now
    for _ in range(2):  # concurrent: neither found what the other was reading
        estimator.observe(replace(answered(other, replace(USAGE, cached_tokens=0)), began=began))
    assert state(estimator).cached_tokens == 1984


def test_an_answer_holds_its_slots_at_its_replica_while_its_work_is_done(estimator):
    forecast = replace(chosen(estimator, IDS, Route.FULL).forecast, target_work_ms=500.0, step_ms=9.0)
    answer = replace(plan(forecast=forecast, kv_tokens=77), replica=ReplicaRef("b"))
    with estimator.answering(answer, 100) as reading:
        both = {each: estimator.state(IDS, TARGET, DRAFT, replica=each) for each in "ab"}
        assert [both[name].queued.target_ms for name in "ab"] == [0.0, 250.0]
        reading.done()  # at the first token: nothing is pending there, and the empty queue is dropped
        estimator.pending_at("c")
        both = {each: estimator.state(IDS, TARGET, DRAFT, replica=each) for each in "ab"}
        assert [both[name].answers for name in "ab"] == [(), (RunningAnswer(450.0, 77),)]
        assert both["b"].queued.target_ms == 0.0


def test_what_the_draft_keeps_is_learned_from_its_answers(estimator):
    assert state(estimator).draft_cached_tokens == 0
    estimator.record_compressed(compressed())
    assert state(estimator).draft_cached_tokens == 1984  # whole blocks
    assert work_of(RouteChoice(Route.SPEC_PC, Reason.REQUESTED, "", SpecPc(400)), 2000, state(estimator)).draft == (
        TokenWork(16, 1984)
    )
    later = np.append(IDS, np.arange(600, dtype=np.uint32))
    assert estimator.state(later, TARGET, DRAFT).draft_cached_tokens == 1984
    assert estimator.state(later, TARGET, DRAFT, salt="other").draft_cached_tokens == 0


def test_a_draft_that_has_forgotten_a_prompt_is_not_expected_to_keep_it(estimator):
    estimator.record_compressed(compressed())
    other = IDS[::-1].copy()
    estimator.record_compressed(of(other, compressed()))
    estimator.record_compressed(of(IDS, compressed(draft_cached_tokens=0)))
    assert estimator.state(other, TARGET, DRAFT).draft_cached_tokens == 0


def test_a_cached_compressed_prompt_shows_nothing_of_the_draft(estimator):
    estimator.record_compressed(compressed(cache=CacheOutcome.HIT))
    assert state(estimator).draft_cached_tokens == 0


def test_the_draft_learns_its_speed_from_the_tokens_that_it_read(estimator):
    for _ in range(20):
        estimator.observe(answered(compressed(draft_ms=100.0)))
        estimator.observe(answered(compressed(draft_ms=10.0, draft_cached_tokens=1900)))
    costs = state(estimator).costs.draft
    assert costs.ms(TokenWork(2000, 0, 4)) == pytest.approx(100.0, rel=0.3)
    assert costs.ms(TokenWork(100, 1900, 4)) == pytest.approx(10.0, rel=0.5)
