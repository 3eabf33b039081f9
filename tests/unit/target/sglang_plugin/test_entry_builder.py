"""Callers wait aside while one entry is made for all of them, and none is lost whatever happens to its making."""

from __future__ import annotations

import random
from array import array
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from presift.core.kv_plan import KvPlan  # noqa: E402 - the plugin needs torch
from presift.core.masks import KvMask  # noqa: E402
from presift.core.policies import KvSelection, SpecKv  # noqa: E402
from presift.core.spans import Span  # noqa: E402
from presift.models.torchvision_ops import declare_missing  # noqa: E402
from presift.target.sglang_plugin import entry_builder, scoring_request  # noqa: E402
from presift.target.sglang_plugin.custom_params import mask_to_values  # noqa: E402
from presift.target.sglang_plugin.entry_builder import MAX_ATTEMPTS, EntryBuilder  # noqa: E402
from presift.target.sglang_plugin.entry_pins import PINNED_SHARE  # noqa: E402
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, Report, ScoringState, state_of  # noqa: E402

from .fakes import KEPT, PROMPT_TOKENS, Request, Scheduler, caller, compressed  # noqa: E402

MASK = KvMask(np.ones((1, 1, PROMPT_TOKENS), dtype=bool))
DROPPING = KvPlan(SpecKv(capacity=KEPT, window=3), lookahead_token_ids=(50, 51), keep_full_prefix=False)
MASKED = KvPlan(SpecKv(capacity=KEPT, window=3, selection=KvSelection.DRAFT_MASK), kv_mask=MASK, report_kept=True)
SIDE_STATE = ("runs", "waiting", "missing", "leases", "leased_tokens")


class House:
    """A chain in a fake scheduler; `room` False means that nothing can be published."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scheduler = Scheduler()
        self.builder = EntryBuilder(self.scheduler)
        self.room = True
        self.is_complete = True
        self.published: list[Any] = []
        monkeypatch.setattr(entry_builder, "scoring_request", self._scoring)
        monkeypatch.setattr(entry_builder, "publish", self._publish)

    def _scoring(self, scheduler: Any, request: Request, state: DecodeState) -> Request:
        assert scheduler is self.scheduler
        given = state.plan.kv_mask is not None
        seen: Any = SimpleNamespace(is_complete=self.is_complete, coverage=0.5, ms=1.5, mask=MASK)
        scored = ScoringState(state, None if given else seen)
        return Request(f"presift-{request.rid}", scored, cached_tokens=6, priority=request.priority)

    def _publish(self, scheduler: Any, request: Request, state: ScoringState) -> Any:
        assert scheduler is self.scheduler and state is request.state
        if not self.room:
            return None
        self.published.append(object())
        return self.published[-1]

    @property
    def queue(self) -> list[Request]:
        return self.scheduler.waiting_queue

    @property
    def locks(self) -> list[Any]:
        return list(self.scheduler.tree_cache.held.values())

    def side_state(self) -> list[int]:
        counts = self.builder.counts()
        return [counts[name] for name in SIDE_STATE]

    def miss(self, *requests: Request) -> bool:
        for request in requests:
            self.builder.add_missing(request)
        return self.builder.start_missing()

    def scoring(self, entry: str = "entry", keep: bool = True) -> Request:
        scoring: Request = self.builder.builds[entry, keep].scoring
        return scoring

    def run(self, scoring: Request) -> None:
        """SGLang takes a request out of the queue and reads it."""
        self.queue.remove(scoring)
        scoring.holds_kv = True

    def finish(self, scoring: Request) -> None:
        self.builder.finish_scoring(scoring, scoring.state)
        scoring.holds_kv = False

    def admit(self, request: Request) -> None:
        self.queue.remove(request)
        request.prefix_indices = [0] * KEPT
        self.builder.on_admitted(request, request.state)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


def test_it_is_idle_at_first_and_tells_the_pool(house: House) -> None:
    assert house.side_state() == [0] * 5
    pool = {"free_slots": 3, "evictable_slots": 7, "locked_slots": 5, "page_tokens": 1, "pool_tokens": 1000}
    assert pool.items() <= house.builder.counts().items()
    assert not house.builder.start_missing()


def test_an_entry_is_made_once_for_all_who_wait_for_it(house: House) -> None:
    others = Request("x"), Request("y")
    first, second = caller("a"), caller("b")
    house.queue[:] = [others[0], first, second, others[1]]
    assert house.miss(first, second)
    scoring = house.scoring()
    assert house.queue == [others[0], scoring, others[1]]
    assert house.side_state() == [1, 2, 0, 0, 0]

    house.run(scoring)
    house.builder.clean_up()
    assert house.side_state() == [1, 2, 0, 0, 0]
    house.finish(scoring)
    assert house.queue == [first, second, *others]
    assert house.locks == house.published * 2
    assert house.side_state() == [0, 0, 0, 2, 2 * KEPT]
    for request, left in ((first, 1), (second, 0)):
        house.admit(request)
        assert len(house.locks) == left
    assert house.side_state() == [0] * 5
    report = Report(PROMPT_TOKENS, KEPT + 1, 6, score_ms=1.5, coverage=0.5)
    for request in (first, second):
        report.publish_ms = request.state.report.publish_ms
        assert request.state.report == report
    assert 0.0 <= report.publish_ms < 1000.0


def test_a_later_caller_joins_the_run_under_way(house: House) -> None:
    first, second = caller("a"), caller("b")
    house.queue.append(first)
    assert house.miss(first)
    house.run(house.scoring())
    house.queue.append(second)
    assert not house.miss(second)
    assert house.queue == []
    house.finish(house.scoring())
    assert house.queue == [first, second]
    assert len(house.published) == 1


def test_other_entries_are_other_runs(house: House) -> None:
    first, second = caller("a", "one"), caller("b", "two")
    house.queue[:] = [first, second]
    assert house.miss(first, second)
    assert house.queue == [house.scoring("one"), house.scoring("two")]
    house.run(house.scoring("two"))
    house.finish(house.scoring("two"))
    assert house.queue == [second, house.scoring("one")]
    assert house.side_state() == [1, 1, 0, 1, KEPT]


def test_who_wants_the_full_prefix_kept_does_not_share_with_who_does_not(house: House) -> None:
    """One entry; what its making leaves of the prompt is not the same."""
    keeping, dropping, late = caller("a"), caller("b", plan=DROPPING), caller("c", plan=DROPPING)
    house.queue[:] = [keeping, dropping]
    assert house.miss(keeping, dropping)
    kept, dropped = house.scoring(keep=True), house.scoring(keep=False)
    assert house.queue == [kept, dropped]
    assert (kept.state.caller, dropped.state.caller) == (keeping.state, dropping.state)
    assert {key: run.key for key, run in house.builder.builds.items()} == {
        ("entry", True): ("entry", True),
        ("entry", False): ("entry", False),
    }
    house.run(dropped)
    house.queue.append(late)
    assert not house.miss(late)
    house.finish(dropped)
    assert house.queue == [dropping, late, kept]
    house.run(kept)
    house.finish(kept)
    assert house.queue == [keeping, dropping, late]
    assert house.side_state() == [0, 0, 0, 3, 3 * KEPT]


@pytest.mark.parametrize(
    ("low_first", "first", "second", "then"),
    [
        (False, 3, 5, 5),
        (False, 5, 3, 5),
        (True, 3, 5, 3),
        (True, 5, 3, 3),
        (False, None, 3, None),
        (False, 3, None, 3),
    ],
)
def test_the_most_urgent_who_waits_decides(
    house: House, low_first: bool, first: int | None, second: int | None, then: int | None
) -> None:
    house.scheduler.schedule_low_priority_values_first = low_first
    callers = [caller("a"), caller("b")]
    callers[0].priority, callers[1].priority = first, second
    house.queue[:] = callers
    house.miss(*callers)
    assert house.scoring().priority == then
    assert [each.priority for each in callers] == [first, second]


def test_a_lease_ends_with_its_request(house: House) -> None:
    """Timed out, or aborted by a name that the plugin did not see."""
    callers = [caller("a"), caller("b")]
    house.queue[:] = callers
    house.miss(*callers)
    house.run(house.scoring())
    house.finish(house.scoring())
    house.builder.clean_up()
    assert len(house.locks) == 2
    house.queue.remove(callers[0])
    house.builder.clean_up()
    assert house.side_state() == [0, 0, 0, 1, KEPT]
    house.admit(callers[1])


def test_an_idle_chain_does_not_look_at_the_queue(house: House) -> None:
    """It is asked before each pass, and the queue may be long."""

    class Unread(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("the queue was read")

    house.scheduler.waiting_queue = Unread([Request("x")])
    house.builder.clean_up()


def test_room_is_made_of_all_leases_and_their_requests_come_again(house: House) -> None:
    request = caller("a")
    house.queue.append(request)
    assert not house.builder.release_pins()
    house.miss(request)
    assert not house.builder.release_pins()
    house.run(house.scoring())
    house.finish(house.scoring())
    assert house.builder.release_pins()
    assert house.locks == [] and not house.builder.release_pins()
    assert house.queue == [request]
    assert house.miss(request) and request.state.attempts == 2


def test_a_request_that_left_the_queue_meanwhile_starts_nothing(house: House) -> None:
    assert not house.miss(caller("a"))
    assert house.side_state() == [0] * 5


@pytest.mark.parametrize("state", [None, PassthroughState(Report(1, 1, 0))], ids=["none", "untouched"])
def test_only_compressed_requests_start_anything(house: House, state: Any) -> None:
    request = Request("a", state)
    house.queue.append(request)
    assert not house.miss(request)
    assert house.queue == [request]


@pytest.mark.parametrize("was_running", [False, True])
def test_callers_whose_scoring_vanished_come_back(house: House, was_running: bool) -> None:
    other, first, second = Request("x"), caller("a"), caller("b")
    house.queue[:] = [first, second, other]
    house.miss(first, second)
    scoring = house.scoring()
    house.run(scoring) if was_running else house.queue.remove(scoring)
    scoring.holds_kv = False
    house.builder.clean_up()
    assert house.queue == [first, second, other]
    assert house.side_state() == [0] * 5
    assert house.miss(first, second)
    assert house.scoring() is not scoring
    house.builder.finish_scoring(scoring, scoring.state)
    assert house.published == []
    assert house.side_state() == [1, 2, 0, 0, 0]


def test_a_scoring_request_that_waits_or_holds_kv_is_left_alone(house: House) -> None:
    request = caller("a")
    house.queue.append(request)
    house.miss(request)
    for _ in range(2):
        house.builder.clean_up()
        assert house.side_state() == [1, 1, 0, 0, 0]
        if house.queue:
            house.run(house.scoring())


def test_without_room_it_is_tried_again_until_the_caller_is_told_to_come_again(house: House) -> None:
    request, other, house.room = caller("a"), Request("x"), False
    house.queue[:] = [request, other]
    for _ in range(MAX_ATTEMPTS):
        assert house.miss(request)
        assert request.abort is None
        house.run(house.scoring())
        house.finish(house.scoring())
        assert house.queue == [request, other]
        assert house.side_state() == [0] * 5
    assert house.miss(request)
    assert request.abort is not None
    message, status, kind = request.abort
    assert (status, kind) == (503, "presift")
    assert str(MAX_ATTEMPTS) in message
    assert request.skip_radix_cache_insert
    assert house.queue == [request, other]
    assert house.side_state() == [0] * 5


def test_room_at_the_last_attempt_is_enough(house: House) -> None:
    request, house.room = caller("a"), False
    house.queue.append(request)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        house.room = attempt == MAX_ATTEMPTS
        house.miss(request)
        house.run(house.scoring())
        house.finish(house.scoring())
    house.admit(request)
    assert request.abort is None
    assert house.side_state() == [0] * 5


def test_a_backend_that_shows_no_queries_fails_the_callers(house: House) -> None:
    callers, house.is_complete = [caller("a"), caller("b")], False
    house.queue[:] = callers
    house.miss(*callers)
    house.run(house.scoring())
    house.finish(house.scoring())
    assert house.queue == callers
    assert house.published == []
    for request in callers:
        assert request.abort is not None and request.abort[1:] == (500, "presift")
        assert request.skip_radix_cache_insert
    assert house.side_state() == [0] * 5


def test_an_entry_that_cannot_be_made_fails_its_callers_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(entry_builder, "publish", fail)
    callers, other = [caller("a"), caller("b")], caller("c", "other")
    house.queue[:] = [*callers, other]
    house.miss(*callers, other)
    house.run(house.scoring())
    house.finish(house.scoring())
    assert house.queue == [*callers, house.scoring("other")]
    for request in callers:
        assert request.abort is not None and request.abort[1:] == (500, "presift")
        assert "secret" not in request.abort[0]
    assert other.abort is None
    assert (house.side_state(), house.locks) == ([1, 1, 0, 0, 0], [])


def test_what_was_settled_is_settled_once(house: House) -> None:
    request = caller("a")
    house.queue.append(request)
    house.miss(request)
    scoring = house.scoring()
    assert not scoring.state.is_finished
    for _ in range(2):
        house.builder.finish_scoring(scoring, scoring.state)
        assert scoring.state.is_finished
    assert (len(house.published), len(house.locks)) == (1, 1)


def test_an_aborted_caller_goes_back_to_the_queue_and_the_others_wait_on(house: House) -> None:
    first, second = caller("a"), caller("b")
    house.queue[:] = [first, second]
    house.miss(first, second)
    scoring = house.scoring()
    house.builder.requeue_waiting("a")
    assert house.queue == [scoring, first]
    assert house.side_state() == [1, 1, 0, 0, 0]
    house.run(scoring)
    house.finish(scoring)
    assert len(house.locks) == 1
    assert second.state.report is not None and first.state.report is None


def test_aborts_go_by_prefix(house: House) -> None:
    callers = [caller("ab"), caller("ac", "two"), caller("b")]
    house.queue[:] = callers
    house.miss(*callers)
    house.builder.requeue_waiting("zz")
    assert house.side_state() == [2, 3, 0, 0, 0]
    house.builder.requeue_waiting("a")
    assert house.queue == [house.scoring("entry"), callers[0], callers[1]]
    assert house.side_state() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("stage", ["queued", "chunked", "last chunk"])
@pytest.mark.parametrize("every", [False, True])
def test_scoring_that_nobody_waits_for_is_abandoned(house: House, stage: str, every: bool) -> None:
    callers = [caller("a1"), caller("a2")]
    house.queue[:] = callers
    house.miss(*callers)
    scoring, scheduler = house.scoring(), house.scheduler
    if stage != "queued":
        house.run(scoring)
        scheduler.chunked_req = scoring if stage == "chunked" else Request("x")
    house.builder.requeue_waiting("no such id" if every else "a", every=every)
    assert house.queue == callers
    assert scheduler._pending_chunked_abort_req is (scoring if stage == "chunked" else None)
    assert house.side_state() == [0] * 5
    house.builder.finish_scoring(scoring, scoring.state)
    assert (house.published, house.locks, scoring.state.is_finished) == ([], [], True)


def test_a_found_entry_is_reused_with_the_coverage_that_it_was_made_with(house: House) -> None:
    first, again, unknown = caller("a"), caller("b", suffix_tokens=4), caller("c", "other")
    house.queue[:] = [first, again, unknown]
    house.miss(first)
    house.run(house.scoring())
    house.finish(house.scoring())
    for request in (first, again, unknown):
        house.admit(request)
    assert again.state.report == Report(PROMPT_TOKENS + 4, KEPT + 5, KEPT, reused_entry=True, coverage=0.5)
    assert unknown.state.report == Report(PROMPT_TOKENS, KEPT + 1, KEPT, reused_entry=True, coverage=None)
    assert not first.state.report.reused_entry


def test_coverage_is_forgotten_with_the_tree_and_beyond_a_limit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_builder, "_REMEMBERED", 2)

    def make(entry: str) -> None:
        request = caller("a", entry)
        house.queue.append(request)
        house.miss(request)
        house.run(house.scoring(entry))
        house.finish(house.scoring(entry))
        house.admit(request)

    def coverage(entry: str) -> float | None:
        request = caller("b", entry)
        house.queue.append(request)
        house.admit(request)
        found: float | None = request.state.report.coverage
        return found

    for entry in ("one", "two", "one", "three"):
        make(entry)
    assert [coverage(entry) for entry in ("one", "two", "three")] == [0.5, None, 0.5]
    house.builder.on_tree_reset()
    assert coverage("one") is None


def test_forgetting_the_tree_unlocks_nothing(house: House) -> None:
    request = caller("a")
    house.queue.append(request)
    house.miss(request)
    house.run(house.scoring())
    house.finish(house.scoring())
    house.scheduler.tree_cache.held.clear()
    house.builder.on_tree_reset()
    house.admit(request)
    assert house.side_state() == [0] * 5


def test_a_mask_that_was_given_is_not_scored_and_may_be_told(house: House) -> None:
    plain = KvPlan(MASKED.policy, kv_mask=MASK)
    callers = [caller("a", plan=MASKED), caller("b", plan=plain)]
    house.queue[:] = callers
    house.miss(*callers)
    house.run(house.scoring())
    house.finish(house.scoring())
    asked, other = (request.state.report for request in callers)
    assert (asked.score_ms, asked.coverage, asked.kv_mask) == (0.0, None, mask_to_values(MASK))
    assert other.kv_mask is None


def test_a_scored_mask_is_told_to_those_who_ask(house: House) -> None:
    asking = KvPlan(SpecKv(capacity=KEPT, window=3), report_kept=True)
    callers = [caller("a"), caller("b", plan=asking)]
    house.queue[:] = callers
    house.miss(*callers)
    house.run(house.scoring())
    house.finish(house.scoring())
    assert [request.state.report.kv_mask for request in callers] == [None, mask_to_values(MASK)]


@pytest.mark.parametrize("asks", [True, False])
def test_a_mask_is_built_only_where_somebody_asked(house: House, monkeypatch: pytest.MonkeyPatch, asks: bool) -> None:
    """It is copied from the device."""
    built: list[Any] = []
    monkeypatch.setattr(entry_builder, "_kept_mask", lambda state: built.append(state) or MASK)
    asking = KvPlan(SpecKv(capacity=KEPT, window=3), report_kept=asks)
    callers = [caller("a"), caller("b", plan=asking)]
    house.queue[:] = callers
    house.miss(*callers)
    house.run(house.scoring())
    house.finish(house.scoring())
    assert len(built) == asks


def test_the_lookahead_is_not_counted_as_cached(house: House) -> None:
    request = caller("a")
    house.queue.append(request)
    house.miss(request)
    house.scoring().cached_tokens = PROMPT_TOKENS + 2
    house.run(house.scoring())
    house.finish(house.scoring())
    assert request.state.report.cached_tokens == PROMPT_TOKENS


def test_leases_hold_a_share_of_the_pool(house: House) -> None:
    most = int(house.scheduler.max_total_num_tokens * PINNED_SHARE) // KEPT
    callers = [caller(f"{place}") for place in range(most + 3)]
    house.queue[:] = callers
    house.miss(*callers)
    house.run(house.scoring())
    house.finish(house.scoring())
    assert len(house.locks) == most == house.side_state()[3]
    for request in callers:
        house.admit(request)
    assert house.side_state() == [0] * 5


class Storm:
    """Whatever may happen, in whatever order. `living` are the callers that were neither admitted nor aborted."""

    def __init__(self, house: House, seed: int) -> None:
        self.house, self.chance = house, random.Random(seed)
        self.living: list[Request] = []
        self.came = 0

    def arrive(self) -> None:
        self.came += 1
        plan = DROPPING if self.chance.random() < 0.3 else None
        self.living.append(caller(f"{self.came}", f"entry {self.chance.randrange(3)}", plan=plan))
        self.house.queue.append(self.living[-1])

    def pass_by(self) -> None:
        self.house.builder.clean_up()
        for request in self.house.queue:
            if isinstance(request.state, DecodeState) and request.abort is None and self.chance.random() < 0.7:
                self.house.builder.add_missing(request)
        self.house.builder.start_missing()

    def read(self) -> None:
        for request in [each for each in self.house.queue if isinstance(each.state, ScoringState)][:1]:
            self.house.run(request)

    def settle(self) -> None:
        self.house.room = self.chance.random() < 0.7
        for scoring in [run.scoring for run in self.house.builder.builds.values() if run.scoring.holds_kv][:1]:
            self.house.finish(scoring)

    def vanish(self) -> None:
        for run in list(self.house.builder.builds.values())[:1]:
            run.scoring.holds_kv = False
            self.house.queue[:] = [each for each in self.house.queue if each is not run.scoring]

    def admit(self) -> None:
        for request in [each for each in self.house.queue if each.rid in self.house.builder.pins._pins][:1]:
            self.living.remove(request)
            self.house.admit(request)

    def slip_out(self) -> None:
        """By a door that the plugin does not watch: its lease ends with the next look at the queue."""
        for request in [each for each in self.house.queue if isinstance(each.state, DecodeState)][:1]:
            self.house.queue.remove(request)
            self.living.remove(request)
        self.house.builder.clean_up()

    def leave(self, prefix: str = "", every: bool = False) -> None:
        prefix = prefix or (self.chance.choice(self.living).rid if self.living else "none")
        self.house.builder.requeue_waiting(prefix, every)
        for request in [each for each in self.living if every or each.rid.startswith(prefix)]:
            self.house.queue.remove(request)  # SGLang looks for it there
            self.living.remove(request)
        self.house.builder.pins.release_by_prefix("" if every else prefix)

    def check(self) -> None:
        waiting = [request for run in self.house.builder.builds.values() for request in run.waiting]
        places = [each.rid for each in (*self.house.queue, *waiting) if isinstance(each.state, DecodeState)]
        assert sorted(places) == sorted(each.rid for each in self.living)
        assert len(self.house.locks) == len(self.house.builder.pins)
        assert all(run.waiting and run.key == key for key, run in self.house.builder.builds.items())
        assert set(self.house.builder.pins._pins) <= {each.rid for each in self.living}


@pytest.mark.parametrize("seed", range(40))
def test_no_caller_and_no_lock_is_ever_lost(house: House, seed: int) -> None:
    """Each caller is in the queue or waits in one run, exactly once, until it is admitted or aborted."""
    storm = Storm(house, seed)
    often = [storm.arrive, storm.pass_by, storm.read, storm.settle, storm.admit] * 3
    for _ in range(600):
        storm.chance.choice([*often, storm.vanish, storm.leave, storm.slip_out, house.builder.release_pins])()
        storm.check()
    storm.leave(every=True)
    house.builder.start_missing()
    storm.check()
    assert storm.living == []
    assert house.side_state() == [0] * 5
    assert storm.came > 50 and house.published


@pytest.fixture
def sglang() -> None:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()


@pytest.mark.parametrize("keep_full_prefix", [True, False])
def test_the_request_that_is_scored(sglang: None, keep_full_prefix: bool) -> None:
    plan = KvPlan(SpecKv(KEPT, window=3), (Span(2, 4), Span(18, 20)), (50, 51), keep_full_prefix=keep_full_prefix)
    state = compressed(plan=plan)
    asked: Any = SimpleNamespace(
        eos_token_ids={1}, vocab_size=512, priority=3, cache_salt="salt", http_worker_ipc=None, state=state
    )
    asked.time_stats = SimpleNamespace(wait_queue_entry_time=123.5)
    scheduler = SimpleNamespace(tokenizer=object(), model_config=SimpleNamespace(num_hidden_layers=4))
    scoring = scoring_request.scoring_request(scheduler, asked, state)
    assert scoring.origin_input_ids == array("q", [*range(PROMPT_TOKENS), 50, 51])
    assert (scoring.extra_key, scoring.cache_salt, scoring.priority) == ("extra", "salt", 3)
    assert (scoring.sampling_params.max_new_tokens, scoring.sampling_params.temperature) == (0, 1.0)
    assert scoring.sampling_params.top_k == 1
    assert scoring.skip_radix_cache_insert is not keep_full_prefix
    assert scoring.time_stats.wait_queue_entry_time == 123.5
    assert scoring.rid.startswith("presift-")
    assert scoring.rid != scoring_request.scoring_request(scheduler, asked, state).rid
    own = state_of(scoring)
    assert isinstance(own, ScoringState) and own.caller is state and own.selector is not None
    assert (own.selector.prompt_tokens, own.selector.lookahead_tokens, own.selector.kept_tokens) == (
        PROMPT_TOKENS,
        2,
        KEPT,
    )
    assert (own.selector.layers, own.selector.first_row, own.selector.end_row) == (4, 16, 22)
    assert own.selector.protected.nonzero().flatten().tolist() == [2, 3]


def test_a_given_mask_is_not_scored(sglang: None) -> None:
    assert scoring_request.selector_of(SimpleNamespace(), compressed(plan=MASKED)) is None
