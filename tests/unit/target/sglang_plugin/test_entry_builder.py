"""Callers wait while one entry is built for all of them, and none is lost if the build ends early."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
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
from presift.target.sglang_plugin.entry_pins import PINNED_SHARE, SelectedCopy  # noqa: E402
from presift.target.sglang_plugin.ranks import ALONE, Ranks  # noqa: E402
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, Report, ScoringState, state_of  # noqa: E402
from presift.target.sglang_plugin.waiting_queue import QueuedIds  # noqa: E402

from .fakes import (  # noqa: E402
    KEPT,
    PROMPT_TOKENS,
    Queue,
    Request,
    Scheduler,
    Selected,
    caller,
    compressed,
    groups_of,
)

MASK = KvMask(np.ones((1, 1, PROMPT_TOKENS), dtype=bool))
DROPPING = KvPlan(SpecKv(capacity=KEPT, window=3), lookahead_token_ids=(50, 51), keep_full_prefix=False)
MASKED = KvPlan(SpecKv(capacity=KEPT, window=3, selection=KvSelection.DRAFT_MASK), kv_mask=MASK, report_kept=True)
SIDE_STATE = ("runs", "waiting", "missing", "leases", "leased_tokens")


class Rig:
    """An EntryBuilder in a fake scheduler; `room` False: nothing can be published; `failure`: why copying fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scheduler = Scheduler()
        self.builder = EntryBuilder(self.scheduler)
        self.room = True
        self.failure: str | None = None
        self.published: list[Any] = []
        monkeypatch.setattr(entry_builder, "scoring_request", self._scoring)
        monkeypatch.setattr(entry_builder, "copy_selected", self._copy)
        monkeypatch.setattr(entry_builder, "insert_entry", self._insert)
        monkeypatch.setattr(entry_builder, "accept", self._accept)

    def _scoring(self, scheduler: Any, request: Request, state: DecodeState) -> Request:
        assert scheduler is self.scheduler
        given = state.plan.kv_mask is not None
        seen: Any = Selected(ms=1.5)
        scored = ScoringState(state, None if given else seen)
        scoring = Request(f"presift-{request.rid}", scored, cached_tokens=6, priority=request.priority)
        # As SGLang's, it is part of a reference cycle.
        scoring.itself = scoring  # type: ignore[attr-defined]
        return scoring

    def _accept(self, request: Request, tokens: tuple[int, ...]) -> int:
        request.output_ids += tokens[: request.accepts]
        return len(request.output_ids)

    def _copy(self, scheduler: Any, request: Request, state: ScoringState, ranks: Ranks) -> SelectedCopy:
        assert scheduler is self.scheduler and state is request.state and ranks is ALONE
        if self.failure or not self.room:
            return SelectedCopy(None, self.failure)
        coverage = None if state.selector is None else 0.5
        accepted = () if state.lookahead is None else state.lookahead.tokens
        mask = MASK if state.caller.plan.report_kept else None
        return SelectedCopy(torch.zeros(KEPT), coverage=coverage, accepted=accepted, kv_mask=mask)

    def _insert(self, tree: Any, request: Request, caller: DecodeState, slots: Any) -> Any:
        assert tree is self.scheduler.tree_cache and caller is request.state.caller
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

    def clean_up(self) -> None:
        self.builder.clean_up(QueuedIds(self.scheduler.waiting_queue))

    def scoring(self, entry: str = "entry", keep: bool = True, report: bool = False) -> Request:
        scoring: Request = self.builder.builds[entry, keep, report].scoring
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
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_a_new_builder_is_idle_and_counts_the_pool(rig: Rig) -> None:
    assert rig.side_state() == [0] * 5
    pool = {"free_slots": 3, "evictable_slots": 7, "locked_slots": 5, "page_tokens": 1, "pool_tokens": 1000}
    assert pool.items() <= rig.builder.counts().items()
    assert not rig.builder.start_missing()


def test_an_entry_is_built_once_for_all_callers(rig: Rig) -> None:
    others = Request("x"), Request("y")
    first, second = caller("a"), caller("b")
    rig.queue[:] = [others[0], first, second, others[1]]
    assert rig.miss(first, second)
    scoring = rig.scoring()
    assert rig.queue == [others[0], scoring, others[1]]
    assert rig.side_state() == [1, 2, 0, 0, 0]

    rig.run(scoring)
    queue = rig.scheduler.waiting_queue = Queue(rig.queue)
    rig.clean_up()
    # Nothing is pinned, and what runs is not in the queue.
    assert queue.walks == 0
    assert rig.side_state() == [1, 2, 0, 0, 0]
    rig.finish(scoring)
    assert rig.queue == [first, second, *others]
    assert rig.locks == rig.published * 2
    assert rig.side_state() == [0, 0, 0, 2, 2 * KEPT]
    for request, left in ((first, 1), (second, 0)):
        rig.admit(request)
        assert len(rig.locks) == left
    assert rig.side_state() == [0] * 5
    report = Report(PROMPT_TOKENS, KEPT + 1, 6, score_ms=1.5, coverage=0.5)
    for request in (first, second):
        report.publish_ms = request.state.report.publish_ms
        assert request.state.report == report
    assert 0.0 <= report.publish_ms < 1000.0


@pytest.mark.parametrize("count", [1, 300])
def test_a_burst_of_new_prompts_walks_the_queue_as_often_as_one(rig: Rig, count: int) -> None:
    """Half of them wait for the build of another."""
    others = [Request(f"o{number}") for number in range(5)]
    callers = [caller(f"r{number}", f"entry {number // 2}") for number in range(count)]
    queue = rig.scheduler.waiting_queue = Queue([*others[:2], *callers, *others[2:]])
    assert rig.miss(*callers)
    assert queue.walks == 2
    builds = [rig.scoring(f"entry {number}") for number in range((count + 1) // 2)]
    assert list(queue) == [*others[:2], *builds, *others[2:]]
    assert rig.side_state()[:3] == [len(builds), count, 0]
    queue.walks = 0
    rig.clean_up()
    assert queue.walks == 1


@pytest.mark.parametrize("count", [1, 300])
def test_an_abort_of_many_builds_walks_the_queue_as_often_as_one(rig: Rig, count: int) -> None:
    """Every other build is read, the last one in chunks; its caller is aborted as that of one that waits."""
    others = [Request(f"o{number}") for number in range(5)]
    callers = [caller(f"r{number}", f"entry {number}") for number in range(2 * count)]
    queue = rig.scheduler.waiting_queue = Queue([*others[:2], *callers, *others[2:]])
    rig.miss(*callers)
    builds = [rig.scoring(f"entry {number}") for number in range(2 * count)]
    for build in builds[1::2]:
        rig.run(build)
    rig.scheduler.chunked_req = builds[-1]
    queue.walks = 0
    rig.builder.requeue_waiting("r")
    assert queue.walks == 1
    assert list(queue) == [*others, *callers]
    assert rig.scheduler._pending_chunked_abort_req is builds[-1]
    assert rig.side_state() == [0] * 5


def test_an_abort_that_ends_no_build_does_not_read_the_queue(rig: Rig) -> None:
    callers = [caller("a"), caller("b")]
    queue = rig.scheduler.waiting_queue = Queue(callers)
    rig.miss(*callers)
    queue.walks = 0
    rig.builder.requeue_waiting("a")
    rig.builder.requeue_waiting("unknown")
    assert queue.walks == 0
    assert list(queue) == [rig.scoring(), callers[0]]


def test_builds_wait_for_callers_whose_entries_are_ready(rig: Rig) -> None:
    """Also if SGLang sorts builds before callers: beyond the cap, ready entries would lose their pins."""
    rig.builder.pins.max_tokens = 2 * KEPT
    callers = [caller(name, name) for name in "abcd"]
    rig.queue.extend(callers)
    rig.miss(*callers)
    builds = [rig.scoring(name) for name in "abcd"]

    def rooms() -> list[bool]:
        return [rig.builder.has_room_for(build.state) for build in builds]

    assert rooms() == [True] * 4
    for build in builds[:2]:
        rig.run(build)
        # Twice, because it may be admitted again after it was taken back.
        rig.builder.on_scoring_admitted(build.state)
        rig.builder.on_scoring_admitted(build.state)
    # Those that SGLang has admitted are admitted again after a retraction.
    assert rooms() == [True, True, False, False]
    rig.finish(builds[0])
    assert rooms()[1:] == [True, False, False]
    rig.admit(callers[0])
    # No later one takes the room of the one that waits.
    assert not rig.builder.has_room_for(builds[3].state)
    assert rooms()[1:] == [True] * 3
    rig.builder.requeue_waiting("b")
    rig.builder.pins.max_tokens = KEPT - 1
    # One is built even if it exceeds the cap.
    assert rooms() == [True] * 4


def test_callers_with_other_keep_full_prefix_do_not_share_a_build(rig: Rig) -> None:
    """One entry; what its making leaves of the prompt is not the same."""
    keeping, dropping, late = caller("a"), caller("b", plan=DROPPING), caller("c", plan=DROPPING)
    rig.queue[:] = [keeping, dropping]
    assert rig.miss(keeping, dropping)
    kept, dropped = rig.scoring(keep=True), rig.scoring(keep=False)
    assert rig.queue == [kept, dropped]
    assert (kept.state.caller, dropped.state.caller) == (keeping.state, dropping.state)
    assert {key: run.key for key, run in rig.builder.builds.items()} == {
        ("entry", True, False): ("entry", True, False),
        ("entry", False, False): ("entry", False, False),
    }
    rig.run(dropped)
    rig.queue.append(late)
    assert not rig.miss(late)
    rig.finish(dropped)
    assert rig.queue == [dropping, late, kept]
    rig.run(kept)
    rig.finish(kept)
    assert rig.queue == [keeping, dropping, late]
    assert rig.side_state() == [0, 0, 0, 3, 3 * KEPT]


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
def test_the_build_has_the_priority_of_its_most_urgent_caller(
    rig: Rig, low_first: bool, first: int | None, second: int | None, then: int | None
) -> None:
    rig.scheduler.schedule_low_priority_values_first = low_first
    callers = [caller("a"), caller("b")]
    callers[0].priority, callers[1].priority = first, second
    rig.queue[:] = callers
    rig.miss(*callers)
    assert rig.scoring().priority == then
    assert [each.priority for each in callers] == [first, second]


def test_a_pin_ends_with_its_request(rig: Rig) -> None:
    """It timed out, or was aborted outside the plugin."""
    callers = [caller("a"), caller("b")]
    rig.queue[:] = callers
    rig.miss(*callers)
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    rig.clean_up()
    assert len(rig.locks) == 2
    rig.queue.remove(callers[0])
    rig.clean_up()
    assert rig.side_state() == [0, 0, 0, 1, KEPT]
    rig.admit(callers[1])


def test_an_idle_builder_does_not_read_the_queue(rig: Rig) -> None:
    """`clean_up` runs before each pass, and the queue may be long."""

    class Unread(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("the queue was read")

    rig.scheduler.waiting_queue = Unread([Request("x")])
    rig.clean_up()


def test_requests_with_released_pins_start_again(rig: Rig) -> None:
    request = caller("a")
    rig.queue.append(request)
    assert not rig.builder.release_pins()
    rig.miss(request)
    assert not rig.builder.release_pins()
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    assert rig.builder.release_pins()
    assert rig.locks == [] and not rig.builder.release_pins()
    assert rig.queue == [request]
    assert rig.miss(request) and request.state.attempts == 2


def test_a_request_that_left_the_queue_starts_no_build(rig: Rig) -> None:
    assert not rig.miss(caller("a"))
    assert rig.side_state() == [0] * 5


@pytest.mark.parametrize("state", [None, PassthroughState(Report(1, 1, 0))], ids=["none", "untouched"])
def test_only_decode_states_start_a_build(rig: Rig, state: Any) -> None:
    request = Request("a", state)
    rig.queue.append(request)
    assert not rig.miss(request)
    assert rig.queue == [request]


@pytest.mark.parametrize("was_running", [False, True])
def test_callers_of_a_lost_scoring_request_are_requeued(rig: Rig, was_running: bool) -> None:
    other, first, second = Request("x"), caller("a"), caller("b")
    rig.queue[:] = [first, second, other]
    rig.miss(first, second)
    scoring = rig.scoring()
    rig.run(scoring) if was_running else rig.queue.remove(scoring)
    scoring.holds_kv = False
    rig.clean_up()
    assert rig.queue == [first, second, other]
    assert rig.side_state() == [0] * 5
    assert rig.miss(first, second)
    assert rig.scoring() is not scoring
    rig.builder.finish_scoring(scoring, scoring.state)
    assert rig.published == []
    assert rig.side_state() == [1, 2, 0, 0, 0]


def test_a_waiting_or_running_scoring_request_is_kept(rig: Rig) -> None:
    request = caller("a")
    rig.queue.append(request)
    rig.miss(request)
    for _ in range(2):
        rig.clean_up()
        assert rig.side_state() == [1, 1, 0, 0, 0]
        if rig.queue:
            rig.run(rig.scoring())


def test_without_room_the_build_is_tried_again_then_fails(rig: Rig) -> None:
    request, other, rig.room = caller("a"), Request("x"), False
    rig.queue[:] = [request, other]
    for _ in range(MAX_ATTEMPTS):
        assert rig.miss(request)
        assert request.abort is None
        rig.run(rig.scoring())
        rig.finish(rig.scoring())
        assert rig.queue == [request, other]
        assert rig.side_state() == [0] * 5
    assert rig.miss(request)
    assert request.abort is not None
    message, status, kind = request.abort
    assert (status, kind) == (503, "presift")
    assert str(MAX_ATTEMPTS) in message
    assert request.skip_radix_cache_insert
    assert rig.queue == [request, other]
    assert rig.side_state() == [0] * 5


def test_the_last_attempt_may_succeed(rig: Rig) -> None:
    request, rig.room = caller("a"), False
    rig.queue.append(request)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        rig.room = attempt == MAX_ATTEMPTS
        rig.miss(request)
        rig.run(rig.scoring())
        rig.finish(rig.scoring())
    rig.admit(request)
    assert request.abort is None
    assert rig.side_state() == [0] * 5


def test_a_failed_build_fails_only_its_callers(rig: Rig) -> None:
    rig.failure = "copying the selected KV failed: RuntimeError"
    callers, other = [caller("a"), caller("b")], caller("c", "other")
    rig.queue[:] = [*callers, other]
    rig.miss(*callers, other)
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    assert rig.queue == [*callers, rig.scoring("other")]
    for request in callers:
        message = f"presift: building a compressed entry failed: {rig.failure}"
        assert request.abort == (message, 500, "presift")
        assert request.skip_radix_cache_insert
    assert rig.published == []
    assert other.abort is None
    assert (rig.side_state(), rig.locks) == ([1, 1, 0, 0, 0], [])


def test_scoring_finishes_once(rig: Rig) -> None:
    request = caller("a")
    rig.queue.append(request)
    rig.miss(request)
    scoring = rig.scoring()
    assert not scoring.state.is_finished
    for _ in range(2):
        rig.builder.finish_scoring(scoring, scoring.state)
        assert scoring.state.is_finished
    assert (len(rig.published), len(rig.locks)) == (1, 1)


def test_an_aborted_caller_is_requeued_and_the_others_keep_waiting(rig: Rig) -> None:
    first, second = caller("a"), caller("b")
    rig.queue[:] = [first, second]
    rig.miss(first, second)
    scoring = rig.scoring()
    rig.builder.requeue_waiting("a")
    assert rig.queue == [scoring, first]
    assert rig.side_state() == [1, 1, 0, 0, 0]
    rig.run(scoring)
    rig.finish(scoring)
    assert len(rig.locks) == 1
    assert second.state.report is not None and first.state.report is None


@pytest.mark.parametrize("stage", ["queued", "chunked", "last chunk"])
@pytest.mark.parametrize("every", [False, True])
def test_a_build_without_callers_is_cancelled(rig: Rig, stage: str, every: bool) -> None:
    callers = [caller("a1"), caller("a2")]
    rig.queue[:] = callers
    rig.miss(*callers)
    scoring, scheduler = rig.scoring(), rig.scheduler
    if stage != "queued":
        rig.run(scoring)
        scheduler.chunked_req = scoring if stage == "chunked" else Request("x")
    rig.builder.requeue_waiting("no such id" if every else "a", every=every)
    assert rig.queue == callers
    assert scheduler._pending_chunked_abort_req is (scoring if stage == "chunked" else None)
    assert rig.side_state() == [0] * 5
    rig.builder.finish_scoring(scoring, scoring.state)
    assert (rig.published, rig.locks, scoring.state.is_finished) == ([], [], True)


def test_a_reused_entry_reports_the_coverage_of_its_build(rig: Rig) -> None:
    first, again, unknown = caller("a"), caller("b", suffix_tokens=4), caller("c", "other")
    rig.queue[:] = [first, again, unknown]
    rig.miss(first)
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    for request in (first, again, unknown):
        rig.admit(request)
    assert again.state.report == Report(PROMPT_TOKENS + 4, KEPT + 5, KEPT, reused_entry=True, coverage=0.5)
    assert unknown.state.report == Report(PROMPT_TOKENS, KEPT + 1, KEPT, reused_entry=True, coverage=None)
    assert not first.state.report.reused_entry


def test_coverage_is_forgotten_with_the_tree_and_beyond_a_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_builder, "_REMEMBERED", 2)

    def make(entry: str) -> None:
        request = caller("a", entry)
        rig.queue.append(request)
        rig.miss(request)
        rig.run(rig.scoring(entry))
        rig.finish(rig.scoring(entry))
        rig.admit(request)

    def coverage(entry: str) -> float | None:
        request = caller("b", entry)
        rig.queue.append(request)
        rig.admit(request)
        found: float | None = request.state.report.coverage
        return found

    for entry in ("one", "two", "one", "three"):
        make(entry)
    assert [coverage(entry) for entry in ("one", "two", "three")] == [0.5, None, 0.5]
    rig.builder.on_tree_reset()
    assert coverage("one") is None


def begin(rig: Rig, request: Request) -> bool:
    """SGLang finds the entry of `request`, then admits it."""
    rig.queue.append(request)
    request.prefix_indices = [0] * KEPT
    begun = rig.builder.begin_answer(request, request.state)
    rig.admit(request)
    return begun


def test_answers_begin_with_what_the_target_accepted_of_the_lookahead(rig: Rig) -> None:
    first, again, no_more, later = caller("a"), caller("b"), caller("c"), caller("d", suffix_tokens=2)
    full, running = caller("e"), caller("f")
    first.state.next_renewal, full.state.is_full, running.output_ids = 1, True, [9]
    no_more.accepts = 0
    rig.queue.append(first)
    rig.miss(first)
    scoring = rig.scoring()
    scoring.state.lookahead = SimpleNamespace(tokens=(50, 51))
    rig.run(scoring)
    rig.finish(scoring)
    rig.queue.clear()

    assert [begin(rig, request) for request in (first, again, no_more)] == [True, True, False]
    assert [request.output_ids for request in (first, again, no_more)] == [[50, 51], [50, 51], []]
    assert [request.state.report.accepted_tokens for request in (first, again, no_more)] == [2, 2, 0]
    assert [request.state.report.reused_entry for request in (first, again, no_more)] == [False, True, True]
    assert [begin(rig, request) for request in (later, full, running)] == [False] * 3
    assert rig.scheduler.streamed == rig.scheduler.reasoned == [first, again]
    # Until a token was decoded, SGLang may insert the row into its tree.
    assert (first.state.next_renewal, first.state.mentions.begin) == (3, 2)
    rig.builder.on_tree_reset()
    assert not begin(rig, caller("g"))


def broken(*_: Any, **__: Any) -> Any:
    raise ValueError("a defect")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_build_that_cannot_start_fails_its_caller_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    first, second = caller("a", "one"), caller("b", "two")
    rig.queue[:] = [first, second]
    rig.miss(first)
    scoring = rig.scoring("one")
    rig.builder._ranks = Ranks(groups_of(ranks)[0])
    monkeypatch.setattr(entry_builder, "scoring_request", broken)
    if ranks > 1:
        # The other rank may start it, and would wait for this one.
        with pytest.raises(ValueError, match="a defect"):
            rig.miss(second)
        return
    assert rig.miss(second)
    assert second.abort == ("presift: starting to build a compressed entry failed: ValueError", 500, "presift")
    assert second.skip_radix_cache_insert
    assert (rig.queue, rig.side_state()) == ([scoring, second], [1, 1, 0, 0, 0])
    assert first.abort is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_answer_that_cannot_begin_fails_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    def ended(request: Request, tokens: tuple[int, ...]) -> int:
        request.output_ids.append(tokens[0])
        request.finished_reason, request.finished_len = "length", 1
        raise ValueError("a defect")

    request, rig.builder._ranks = caller("a"), Ranks(groups_of(ranks)[0])
    rig.queue.append(request)
    rig.builder._built["entry"] = entry_builder.BuiltEntry(0.5, (50, 51))
    monkeypatch.setattr(entry_builder, "accept", ended)
    if ranks > 1:
        with pytest.raises(ValueError, match="a defect"):
            rig.builder.begin_answer(request, request.state)
        return
    assert not rig.builder.begin_answer(request, request.state)
    # SGLang would end it as it looks, not as an abort.
    assert (request.output_ids, request.finished_reason, request.finished_len) == ([], None, None)
    assert request.abort == ("presift: beginning an answer failed: ValueError", 500, "presift")
    assert rig.builder.start_missing()
    assert (rig.queue, rig.side_state()) == ([request], [0] * 5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_admitted_request_that_cannot_be_reported_fails_alone(
    sglang: None, rig: Rig, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Its pin is released, and what it reads does not change: SGLang has planned it."""
    request, rig.builder._ranks = caller("a"), Ranks(groups_of(ranks)[0])
    rig.builder.pins.pin("a", object(), KEPT)
    monkeypatch.setattr(DecodeState, "record_reuse", broken)
    if ranks > 1:
        with pytest.raises(ValueError, match="a defect"):
            rig.builder.on_admitted(request, request.state)
        return
    rig.builder.on_admitted(request, request.state)
    assert (rig.locks, request.abort) == ([], None)
    ended = request.to_finish
    assert (ended.message, ended.status_code) == ("presift: reporting on an answer failed: ValueError", 500)
    assert ended.err_type == "presift"
    assert request.skip_radix_cache_insert


@pytest.mark.parametrize("name", ["insert_entry", "mask_to_values"])
def test_an_entry_that_cannot_be_inserted_ends_the_engine(rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whose the slots are is not known then."""
    request = caller("a", plan=MASKED)
    rig.queue.append(request)
    rig.miss(request)
    rig.run(scoring := rig.scoring(report=True))
    monkeypatch.setattr(entry_builder, name, broken)
    with pytest.raises(ValueError, match="a defect"):
        rig.finish(scoring)


def test_accepted_tokens_are_streamed_once(rig: Rig) -> None:
    request = caller("a")
    request.state.record_reuse(KEPT, None)
    request.state.report.accepted_tokens, request.output_ids = 2, [50, 51]
    rig.queue.extend([request, request])
    rig.admit(request)
    request.send_token_offset, request.retraction_count = 2, 1
    rig.admit(request)
    assert rig.scheduler.streamed == [request]


def test_a_retracted_request_is_renewed_after_its_next_token_and_not_before(rig: Rig) -> None:
    request = caller("a")
    renewing = replace(request.state.plan.policy, renew_every=6, renew_window=3)
    request.state.plan = replace(request.state.plan, policy=renewing)
    request.state.record_reuse(KEPT, None)
    request.retraction_count, request.output_ids = 1, [50, 51, 52, 53, 1]
    rig.queue.append(request)
    rig.admit(request)
    assert (request.state.next_renewal, request.state.mentions.begin) == (6, 5)


def test_a_tree_reset_unlocks_nothing(rig: Rig) -> None:
    request = caller("a")
    rig.queue.append(request)
    rig.miss(request)
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    rig.scheduler.tree_cache.held.clear()
    rig.builder.on_tree_reset()
    rig.admit(request)
    assert rig.side_state() == [0] * 5


def build_both(rig: Rig, callers: list[Request]) -> None:
    """Only the first caller asks for the mask: each has a build of its own."""
    rig.queue[:] = callers
    rig.miss(*callers)
    for report in (True, False):
        rig.run(rig.scoring(report=report))
        rig.finish(rig.scoring(report=report))


def test_a_given_mask_is_not_scored_and_is_reported_on_request(rig: Rig) -> None:
    plain = KvPlan(MASKED.policy, kv_mask=MASK)
    callers = [caller("a", plan=MASKED), caller("b", plan=plain)]
    build_both(rig, callers)
    asked, other = (request.state.report for request in callers)
    assert (asked.score_ms, asked.coverage, asked.kv_mask) == (0.0, None, mask_to_values(MASK))
    assert other.kv_mask is None


def test_a_selected_mask_is_reported_on_request(rig: Rig) -> None:
    asking = KvPlan(SpecKv(capacity=KEPT, window=3), report_kept=True)
    callers = [caller("b", plan=asking), caller("a")]
    build_both(rig, callers)
    assert [request.state.report.kv_mask for request in callers] == [mask_to_values(MASK), None]


def test_the_lookahead_is_not_counted_as_cached(rig: Rig) -> None:
    request = caller("a")
    rig.queue.append(request)
    rig.miss(request)
    rig.scoring().cached_tokens = PROMPT_TOKENS + 2
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    assert request.state.report.cached_tokens == PROMPT_TOKENS


def test_pins_hold_at_most_a_share_of_the_pool(rig: Rig) -> None:
    most = int(rig.scheduler.max_total_num_tokens * PINNED_SHARE) // KEPT
    callers = [caller(f"{place}") for place in range(most + 3)]
    rig.queue[:] = callers
    rig.miss(*callers)
    rig.run(rig.scoring())
    rig.finish(rig.scoring())
    assert len(rig.locks) == most == rig.side_state()[3]
    for request in callers:
        rig.admit(request)
    assert rig.side_state() == [0] * 5


class Storm:
    """Random events in random order. `living` are the callers that were neither admitted nor aborted."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.chance = rig, random.Random(seed)
        self.living: list[Request] = []
        self.came = 0

    def arrive(self) -> None:
        self.came += 1
        plan = DROPPING if self.chance.random() < 0.3 else None
        self.living.append(caller(f"{self.came}", f"entry {self.chance.randrange(3)}", plan=plan))
        self.rig.queue.append(self.living[-1])

    def pass_by(self) -> None:
        self.rig.clean_up()
        for request in self.rig.queue:
            if isinstance(request.state, DecodeState) and request.abort is None and self.chance.random() < 0.7:
                self.rig.builder.add_missing(request)
        self.rig.builder.start_missing()

    def read(self) -> None:
        for request in [each for each in self.rig.queue if isinstance(each.state, ScoringState)][:1]:
            self.rig.run(request)

    def settle(self) -> None:
        self.rig.room = self.chance.random() < 0.7
        for scoring in [run.scoring for run in self.rig.builder.builds.values() if run.scoring.holds_kv][:1]:
            self.rig.finish(scoring)

    def vanish(self) -> None:
        for run in list(self.rig.builder.builds.values())[:1]:
            run.scoring.holds_kv = False
            self.rig.queue[:] = [each for each in self.rig.queue if each is not run.scoring]

    def admit(self) -> None:
        for request in [each for each in self.rig.queue if each.rid in self.rig.builder.pins._pins][:1]:
            self.living.remove(request)
            self.rig.admit(request)

    def slip_out(self) -> None:
        """Leave the queue without the plugin's knowledge: `clean_up` releases the pin."""
        for request in [each for each in self.rig.queue if isinstance(each.state, DecodeState)][:1]:
            self.rig.queue.remove(request)
            self.living.remove(request)
        self.rig.clean_up()

    def leave(self, prefix: str = "", every: bool = False) -> None:
        prefix = prefix or (self.chance.choice(self.living).rid if self.living else "none")
        self.rig.builder.requeue_waiting(prefix, every)
        for request in [each for each in self.living if every or each.rid.startswith(prefix)]:
            self.rig.queue.remove(request)  # SGLang looks for it there
            self.living.remove(request)
        self.rig.builder.pins.release_by_prefix("" if every else prefix)

    def check(self) -> None:
        waiting = [request for run in self.rig.builder.builds.values() for request in run.waiting]
        places = [each.rid for each in (*self.rig.queue, *waiting) if isinstance(each.state, DecodeState)]
        assert sorted(places) == sorted(each.rid for each in self.living)
        assert len(self.rig.locks) == len(self.rig.builder.pins)
        assert all(run.waiting and run.key == key for key, run in self.rig.builder.builds.items())
        assert set(self.rig.builder.pins._pins) <= {each.rid for each in self.living}


@pytest.mark.parametrize("seed", range(40))
def test_no_caller_and_no_lock_is_lost(rig: Rig, seed: int) -> None:
    """Each caller is in the queue or waits in one run, exactly once, until it is admitted or aborted."""
    storm = Storm(rig, seed)
    often = [storm.arrive, storm.pass_by, storm.read, storm.settle, storm.admit] * 3
    for _ in range(600):
        storm.chance.choice([*often, storm.vanish, storm.leave, storm.slip_out, rig.builder.release_pins])()
        storm.check()
    storm.leave(every=True)
    rig.builder.start_missing()
    storm.check()
    assert storm.living == []
    assert rig.side_state() == [0] * 5
    assert storm.came > 50 and rig.published


@pytest.mark.parametrize("how", ["published", "no room", "failed", "callers left", "left while it ran", "vanished"])
def test_what_was_scored_goes_with_the_build_and_waits_for_no_collector(rig: Rig, no_collector: None, how: str) -> None:
    before = len(Selected.living)
    rig.room, rig.failure = how != "no room", "why" if how == "failed" else None
    for number in range(20):
        request = caller(f"r{number}", f"entry {number}")
        rig.queue.append(request)
        rig.miss(request)
        scoring = rig.scoring(f"entry {number}")
        assert len(Selected.living) == before + 1
        if how == "callers left":
            rig.builder.requeue_waiting(request.rid)
        elif how == "vanished":
            rig.queue.remove(scoring)
            rig.clean_up()
        else:
            rig.run(scoring)
            if how == "left while it ran":
                rig.builder.requeue_waiting(request.rid)
            rig.finish(scoring)
        del scoring
        assert len(Selected.living) == before
        rig.queue.clear()


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
    asked.time_stats, asked.arrival_processed_tokens = SimpleNamespace(wait_queue_entry_time=123.5), 77
    sampling = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    asked.sampling_params = SimpleNamespace(**sampling)
    scheduler = SimpleNamespace(tokenizer=object(), model_config=SimpleNamespace(num_hidden_layers=4))
    scoring = scoring_request.scoring_request(scheduler, asked, state)
    assert scoring.origin_input_ids == array("q", [*range(PROMPT_TOKENS), 50, 51])
    assert (scoring.extra_key, scoring.cache_salt, scoring.priority) == ("extra", "salt", 3)
    # As the caller, so that its batch samples as before.
    assert {name: getattr(scoring.sampling_params, name) for name in sampling} == sampling
    assert scoring.sampling_params.max_new_tokens == 0
    assert scoring.skip_radix_cache_insert is not keep_full_prefix
    assert (scoring.time_stats.wait_queue_entry_time, scoring.arrival_processed_tokens) == (123.5, 77)
    assert scoring.rid.startswith("presift-")
    other = scoring_request.scoring_request(scheduler, asked, state)
    # Each rank makes the same ids in the same order. SGLang aborts by the beginning of an id.
    assert int(other.rid.removeprefix("presift-"), 16) == int(scoring.rid.removeprefix("presift-"), 16) + 1
    assert len(other.rid) == len(scoring.rid)
    own = state_of(scoring)
    assert isinstance(own, ScoringState) and own.caller is state and own.selector is not None
    assert (own.selector.prompt_tokens, own.selector.lookahead_tokens, own.selector.kept_tokens) == (
        PROMPT_TOKENS,
        2,
        KEPT,
    )
    assert (own.selector.layers, own.selector.first_row, own.selector.end_row) == (4, 16, 22)
    assert own.lookahead is not None
    assert (own.lookahead.first_row, own.lookahead.tokens) == (PROMPT_TOKENS - 1, (50, 51))
    assert own.selector.protected.nonzero().flatten().tolist() == [2, 3]


def test_a_given_mask_is_not_scored(sglang: None) -> None:
    assert scoring_request.selector_of(SimpleNamespace(), compressed(plan=MASKED)) is None
