"""When renewals start, are put in place, skipped and given up, with SGLang's parts replaced by plain values."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.core.kv_plan import KvPlan  # noqa: E402 - the plugin needs torch
from presift.core.policies import KvSelection, SpecKv  # noqa: E402
from presift.core.spans import Span  # noqa: E402
from presift.target.sglang_plugin import renewals  # noqa: E402
from presift.target.sglang_plugin.custom_params import KEY  # noqa: E402
from presift.target.sglang_plugin.entry_pins import SelectedCopy  # noqa: E402
from presift.target.sglang_plugin.ranks import ALONE, Ranks  # noqa: E402
from presift.target.sglang_plugin.renewals import Renewals, selection  # noqa: E402
from presift.target.sglang_plugin.states import DecodeState, ScoringState  # noqa: E402
from presift.target.sglang_plugin.waiting_queue import QueuedIds  # noqa: E402

from .fakes import Queue, Request, Selected, groups_of  # noqa: E402

OTHER = Request("other")
PROMPT, KEPT, SUFFIX, EVERY, WINDOW = 20, 8, 2, 6, 5
SLOTS = torch.arange(100, 140)


def state_of(first: int = 0, every: int = EVERY) -> DecodeState:
    policy = SpecKv(KEPT, window=3, renew_every=every, renew_window=WINDOW, first_full_tokens=first)
    plan = KvPlan(policy, (Span(1, 3),))
    state = DecodeState(plan, array("q", range(PROMPT)), KEPT, "entry", "extra", SUFFIX)
    state.is_full, state.next_renewal = bool(first), first or every or None
    state.record_build(0)
    return state


@dataclass(eq=False)
class Caller:
    """A request that decodes and has generated the first `generated` tokens of `answer`."""

    state: DecodeState
    rid: str = "a"
    generated: int = 1
    ended: bool = False
    to_finish: Any = None
    retraction_count: int = 0
    max_new_tokens: int = 100
    protected: int = KEPT + 1 + SUFFIX
    full_untruncated_fill_ids: Any = None
    extra_key: str = "entry"
    answer: array[int] = field(default_factory=lambda: array("q", range(50, 150)))

    def __post_init__(self) -> None:
        suffix = array("q", [90, 91])
        self.origin_input_ids = (self.state.prompt if self.state.is_full else array("q", [0] * (KEPT + 1))) + suffix

    @property
    def output_ids(self) -> array[int]:
        return self.answer[: self.generated]

    @property
    def kv(self) -> Any:
        return SimpleNamespace(cache_protected_len=self.protected)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(custom_params={KEY: self.state}, max_new_tokens=self.max_new_tokens)

    def finished(self) -> bool:
        return self.ended


@dataclass(eq=False)
class Scoring:
    """The plugin's request."""

    state: ScoringState
    rid: str
    holds_kv: bool = False
    prefix_indices: list[int] = field(default_factory=list)
    time_stats: Any = field(
        default_factory=lambda: SimpleNamespace(wait_queue_entry_time=1, set_wait_queue_entry_time=lambda: None)
    )

    @property
    def kv(self) -> Any:
        return SimpleNamespace(holds_kv=self.holds_kv)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(custom_params={KEY: self.state})


class Rig:
    """Renewals over a fake scheduler; `replaced` are the calls of `replace_head`, `freed` the slots given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.freed: list[Any] = []
        self.replaced: list[tuple[int, int]] = []
        self.has_room = self.fits = self.tail_fits = True
        self.failure: str | None = None
        self.coverage: float | None = 0.5
        allocator = SimpleNamespace(free=self.freed.append)
        self.scheduler: Any = SimpleNamespace(
            waiting_queue=[OTHER],
            chunked_req=None,
            _pending_chunked_abort_req=None,
            page_size=1,
            token_to_kv_pool_allocator=allocator,
        )
        self.renewals = Renewals(self.scheduler)
        monkeypatch.setattr(renewals, "scoring_request", self._scoring)
        monkeypatch.setattr(renewals, "can_replace_head", lambda _request, _head: self.fits)
        monkeypatch.setattr(renewals, "copy_selected", self._copy)
        monkeypatch.setattr(renewals, "replace_head", self._replace)

    def _replace(self, scheduler: Any, batch: Any, index: int, head: int, slots: Any) -> bool:
        assert scheduler is self.scheduler and slots is SLOTS
        if self.tail_fits:
            self.replaced.append((index, head))
        return self.tail_fits

    def _copy(self, scheduler: Any, scoring: Scoring, state: ScoringState, ranks: Ranks) -> SelectedCopy:
        assert scheduler is self.scheduler and state is scoring.state and ranks is ALONE
        return SelectedCopy(SLOTS if self.has_room else None, self.failure, self.coverage)

    def _scoring(self, scheduler: Any, request: Any, state: DecodeState, *, is_renewal: bool) -> Scoring:
        assert scheduler is self.scheduler and is_renewal
        first = len(state.prompt) - 1 - WINDOW
        selector: Any = Selected(ms=1.0, first_row=first)
        return Scoring(ScoringState(state, selector, is_renewal), f"presift-{request.rid}")

    def step(self, *callers: Caller) -> bool:
        return self.renewals.step(SimpleNamespace(reqs=list(callers)), QueuedIds(self.scheduler.waiting_queue))

    @property
    def scoring(self) -> Any:
        return self.scheduler.waiting_queue[0]

    def run(self, scoring: Any) -> None:
        self.scheduler.waiting_queue.remove(scoring)
        scoring.holds_kv = True

    def finish(self, scoring: Any) -> None:
        self.renewals.finish_scoring(scoring, scoring.state)
        scoring.holds_kv = False


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_what_is_selected_is_the_prompts_share_and_all_that_follows() -> None:
    state = state_of()
    tokens = state.prompt + array("q", range(7))
    chosen = selection(state, tokens)

    assert (chosen.kept, chosen.prompt, chosen.extra_key) == (KEPT + 7, tokens, "extra")
    policy = chosen.plan.policy
    assert (policy.capacity, policy.window, policy.renews) == (KEPT + 7, WINDOW, False)
    assert policy.selection is KvSelection.TARGET_LOOKAHEAD
    must = chosen.plan.must_keep(len(tokens))
    assert must.nonzero()[0].tolist() == [1, 2, *range(PROMPT - 1, PROMPT + 6)]


@pytest.mark.parametrize(
    ("first", "others", "is_due"),
    [
        (0, {"generated": EVERY}, True),
        (0, {"generated": EVERY - 1}, False),
        (3, {"generated": 3, "protected": PROMPT + SUFFIX}, True),
        (3, {"generated": 2, "protected": PROMPT + SUFFIX}, False),
        (0, {"generated": EVERY, "ended": True}, False),
        (0, {"generated": EVERY, "to_finish": "abort"}, False),
        (0, {"generated": EVERY, "max_new_tokens": EVERY + 3}, False),
        (0, {"generated": EVERY, "max_new_tokens": EVERY + 4}, True),
        # After a retraction the tree holds what was generated before it.
        (0, {"generated": EVERY, "protected": KEPT + 1 + SUFFIX + EVERY - 1}, True),
        (0, {"generated": EVERY, "protected": KEPT + 1 + SUFFIX + EVERY}, False),
    ],
    ids=str,
)
def test_when_a_renewal_is_due(rig: Rig, first: int, others: dict[str, Any], is_due: bool) -> None:
    caller = Caller(state_of(first), **others)
    assert rig.step(caller) is is_due
    assert len(rig.renewals) == int(is_due)
    assert rig.scheduler.waiting_queue[-1] is OTHER
    if is_due:
        assert rig.scoring.state.caller.prompt == caller.state.prompt + array("q", [90, 91]) + caller.output_ids
        assert rig.step(caller) is True
        assert len(rig.renewals) == 1
        rig.run(rig.scoring)
        assert rig.step(caller) is False


MENTION = 4


@pytest.mark.parametrize(
    ("first", "others", "is_due"),
    [
        (0, {"generated": EVERY - 1}, True),
        (0, {"generated": EVERY - 1, "ended": True}, False),
        # The full KV has what the answer needs.
        (6, {"generated": EVERY - 1, "protected": PROMPT + SUFFIX}, False),
    ],
    ids=str,
)
def test_a_new_mention_makes_a_renewal_due(rig: Rig, first: int, others: dict[str, Any], is_due: bool) -> None:
    caller = Caller(state_of(first), answer=array("q", [50, 51, 52, 53, MENTION]), **others)
    assert rig.step(caller) is is_due
    # A prompt whose answer ends on the full KV is never counted.
    assert (caller.state.mentions._rare is None) == bool(first)


def test_after_a_skipped_renewal_mentions_wait_for_the_interval(rig: Rig) -> None:
    answer = array("q", [50, 51, 52, 53, MENTION, 60, MENTION + 1, *range(61, 80)])
    caller = Caller(state_of(), generated=EVERY - 1, answer=answer)
    rig.step(caller)
    rig.renewals.refuse(rig.scoring)
    rig.renewals.drop_refused()
    due = []
    for caller.generated in range(EVERY - 1, 2 * EVERY):
        due.append(rig.step(caller))
    assert due == [False] * EVERY + [True]


def test_a_request_without_renewal_is_never_due(rig: Rig) -> None:
    assert not rig.step(Caller(state_of(every=0), generated=50))


@pytest.mark.parametrize("first", [0, 6])
def test_a_renewal_takes_the_place_of_the_old_kv(rig: Rig, first: int) -> None:
    others = {"protected": PROMPT + SUFFIX} if first else {}
    caller = Caller(state_of(first), generated=6, extra_key="extra" if first else "entry", **others)
    rig.step(caller)
    scoring = rig.scoring
    rig.run(scoring)
    rig.step(caller)
    caller.generated = 8
    rig.finish(scoring)
    assert rig.replaced == []
    rig.step(Caller(state_of(), "b"), caller)

    # All but the final one of 20 + 2 + 6 tokens, less what was dropped before.
    assert rig.replaced == [(1, 27 if first else 27 - (PROMPT - 1 - KEPT))]
    assert (caller.state.is_full, caller.state.next_renewal, len(rig.renewals)) == (False, 6 + EVERY, 0)
    assert (caller.extra_key, len(caller.origin_input_ids)) == ("entry", KEPT + 1 + SUFFIX)
    report = caller.state.report
    assert report is not None
    assert (report.renewals, report.renewals_skipped, report.coverage) == (1, 0, 0.5)
    assert report.kv_tokens == KEPT + 1 + SUFFIX
    assert rig.freed == []


def test_without_renew_every_the_first_compression_is_the_only_one(rig: Rig) -> None:
    caller = Caller(state_of(6, every=0), generated=6, protected=PROMPT + SUFFIX)
    rig.step(caller)
    rig.run(scoring := rig.scoring)
    rig.finish(scoring)
    rig.step(caller)
    assert (rig.replaced != [], caller.state.next_renewal) == (True, None)


@pytest.mark.parametrize(
    ("every", "coverages", "intervals"),
    [
        # Sooner after a fall, as before after a rise; as it was where coverage hardly changes.
        (12, [0.9, 0.8, 0.8, 0.79, 0.85, 0.84, 0.7], [12, 6, 6, 6, 12, 12, 6]),
        # The first selection was made by other tokens than a renewal, so it is not compared.
        (12, [0.1, 0.2], [12, 12]),
        (6, [0.9, 0.8], [6, 4]),
        (3, [0.9, 0.8], [3, 3]),
        (12, [0.9, None, 0.5, 0.4], [12, 12, 12, 6]),
    ],
    ids=str,
)
def test_falling_coverage_renews_sooner(rig: Rig, every: int, coverages: list[Any], intervals: list[int]) -> None:
    caller = Caller(state_of(every=every), generated=every)
    for coverage, interval in zip(coverages, intervals, strict=True):
        rig.step(caller)
        rig.run(scoring := rig.scoring)
        rig.coverage = coverage
        rig.finish(scoring)
        rig.step(caller)
        assert caller.state.next_renewal == caller.generated + interval
        caller.generated += interval
    assert caller.state.report is not None
    known = [each for each in coverages if each is not None]
    assert (caller.state.report.coverage, caller.state.report.coverage_min) == (coverages[-1], min(known))


@pytest.mark.parametrize("how", ["ended", "retracted"])
@pytest.mark.parametrize("when", ["queued", "chunked", "running", "published"])
def test_a_caller_that_goes_leaves_nothing(rig: Rig, how: str, when: str) -> None:
    caller = Caller(state_of(), generated=6)
    rig.step(caller)
    scoring = rig.scoring
    if when != "queued":
        rig.run(scoring)
    if when == "chunked":
        rig.scheduler.chunked_req = scoring
    if when == "published":
        rig.finish(scoring)
    caller.ended, caller.retraction_count = how == "ended", int(how == "retracted")
    rig.step()

    assert (len(rig.renewals), rig.replaced, rig.scheduler.waiting_queue) == (0, [], [OTHER])
    assert scoring.state.selector is None
    assert len(rig.freed) == int(when == "published")
    assert (rig.scheduler._pending_chunked_abort_req is scoring) == (when == "chunked")
    rig.finish(scoring)
    assert len(rig.freed) == int(when == "published")


def test_a_request_that_is_back_after_retraction_does_not_get_kv_of_before(rig: Rig) -> None:
    caller = Caller(state_of(), generated=6)
    rig.step(caller)
    rig.run(scoring := rig.scoring)
    rig.finish(scoring)
    caller.retraction_count = 1
    rig.step(caller)
    assert (rig.replaced, len(rig.freed)) == ([], 1)


@pytest.mark.parametrize("why", ["refused", "aborted", "late", "no room", "failed", "unfit", "tail"])
def test_what_does_not_succeed_is_skipped_counted_and_due_again(rig: Rig, why: str) -> None:
    caller = Caller(state_of(), generated=6)
    rig.step(caller)
    scoring = rig.scoring
    if why == "refused":
        rig.renewals.refuse(scoring)
        assert scoring in rig.scheduler.waiting_queue
        rig.renewals.drop_refused()
    elif why == "aborted":
        rig.scheduler.waiting_queue.remove(scoring)
    elif why == "late":
        caller.generated = 6 + EVERY - 1
        rig.step(caller)
        assert len(rig.renewals) == 1
        caller.generated = 6 + EVERY
    else:
        rig.run(scoring)
        rig.has_room, rig.failure = why in ("unfit", "tail"), "why" if why == "failed" else None
        rig.fits, rig.tail_fits = why != "unfit", why != "tail"
        rig.finish(scoring)
    rig.step(caller)

    assert (len(rig.renewals), rig.replaced, scoring.state.selector) == (0, [], None)
    assert [each is SLOTS for each in rig.freed] == [True] * (why in ("unfit", "tail"))
    assert rig.scheduler.waiting_queue == [OTHER]
    assert caller.state.next_renewal == caller.generated + EVERY
    assert caller.state.report is not None
    assert caller.state.report.renewals_skipped == 1


@pytest.mark.parametrize(
    "how", ["applied", "no room", "refused", "ended", "ended when published", "ended while it ran"]
)
def test_what_was_scored_goes_with_the_renewal_and_waits_for_no_collector(
    rig: Rig, no_collector: None, how: str
) -> None:
    before = len(Selected.living)
    rig.has_room = how != "no room"
    for number in range(20):
        caller = Caller(state_of(), f"{number}", generated=6)
        rig.step(caller)
        scoring = rig.scoring
        # As SGLang's, it is part of a reference cycle.
        scoring.itself = scoring
        assert len(Selected.living) == before + 1
        if how == "refused":
            rig.renewals.refuse(scoring)
            rig.renewals.drop_refused()
        elif how != "ended":
            rig.run(scoring)
            caller.ended = how == "ended while it ran"
            rig.finish(scoring)
        caller.ended = how.startswith("ended")
        rig.step(caller)
        del scoring, caller
        assert len(Selected.living) == before


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("where", ["selection", "scoring_request"])
def test_a_renewal_that_cannot_start_leaves_the_answer_without_renewals(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str, ranks: int
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("a defect")

    first, second = Caller(state_of(), "a", generated=6), Caller(state_of(every=12), "b", generated=6)
    rig.renewals._ranks = Ranks(groups_of(ranks)[0])
    with monkeypatch.context() as patched:
        patched.setattr(renewals, where, broken)
        if ranks > 1:
            # The other rank may start it, and would wait for this one.
            with pytest.raises(ValueError, match="a defect"):
                rig.step(first, second)
            return
        assert not rig.step(first, second)
    assert (first.state.next_renewal, second.state.next_renewal) == (None, 12)
    assert (len(rig.renewals), rig.scheduler.waiting_queue) == (0, [OTHER])
    assert first.state.report is not None
    assert first.state.report.renewals_skipped == 1
    first.generated = second.generated = 12
    assert rig.step(first, second)
    assert len(rig.renewals) == 1


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("why", ["ended", "late", "refused", "waits", "runs", "no room"])
def test_many_renewals_walk_the_queue_as_often_as_one(rig: Rig, why: str, count: int) -> None:
    callers = [Caller(state_of(), f"{number}", generated=6) for number in range(count)]
    rig.step(*callers)
    scorings = rig.scheduler.waiting_queue[:count]
    rig.has_room = why != "no room"
    if why in ("runs", "no room"):
        for scoring in scorings:
            rig.run(scoring)
    queue = rig.scheduler.waiting_queue = Queue(rig.scheduler.waiting_queue)
    if why == "refused":
        for scoring in scorings:
            rig.renewals.refuse(scoring)
        rig.renewals.drop_refused()
    elif why == "no room":
        for scoring in scorings:
            rig.finish(scoring)
    else:
        for caller in callers:
            caller.ended, caller.generated = why == "ended", 6 + EVERY * (why == "late")
        rig.step(*callers)
    # Once to know what waits, once to take out what nobody needs.
    assert queue.walks == {"late": 2, "runs": 0, "no room": 0}.get(why, 1)
    assert list(queue) == [*(scorings if why == "waits" else ()), OTHER]


@pytest.mark.parametrize("page_tokens", [1, 4, 16, 64])
@pytest.mark.parametrize("generated", [1, 2, 6])
def test_the_prompt_must_still_be_cached(rig: Rig, generated: int, page_tokens: int) -> None:
    """All of the prompt before its final token, or what the window does not compute anyway, in whole pages."""
    rig.scheduler.page_size = page_tokens
    caller = Caller(state_of(every=generated), generated=generated)
    rig.step(caller)
    scoring = rig.scoring
    least = min(PROMPT - 1, PROMPT + SUFFIX + generated - 1 - WINDOW) // page_tokens * page_tokens
    for cached in {0, max(0, least - 1), least, least + 1}:
        scoring.prefix_indices = [0] * cached
        assert rig.renewals.has_prefix(scoring, scoring.state) == (cached >= least)


def test_the_place_of_a_request_that_is_between_two_batches_is_kept(rig: Rig) -> None:
    caller = Caller(state_of(), generated=6)
    rig.step(caller)
    rig.run(scoring := rig.scoring)
    rig.finish(scoring)
    rig.step()
    assert (len(rig.renewals), rig.replaced) == (1, [])
    rig.step(caller)
    assert (len(rig.renewals), len(rig.replaced)) == (0, 1)


@pytest.mark.parametrize(
    ("renew_every", "places", "is_kept"),
    [
        (([EVERY], [], 0), 1, True),
        (([0], [EVERY], 0), 2, True),
        (([0], [], EVERY), 1, True),
        (([EVERY], [], 0), 2, False),
        (([0], [], 0), 1, False),
        # Alone, a request takes the only place there is.
        (([], [], EVERY), 1, False),
    ],
)
def test_one_place_is_kept_for_renewals(rig: Rig, renew_every: Any, places: int, is_kept: bool) -> None:
    """`renew_every` of what runs, of what is admitted in the same step, and of the request that asks."""
    running, admitted, candidate = renew_every
    batch = SimpleNamespace(reqs=[Caller(state_of(every=every)) for every in running])
    adder = SimpleNamespace(running_batch=batch, can_run_list=[Caller(state_of(every=every)) for every in admitted])
    rig.scheduler.get_num_allocatable_reqs = lambda count, running_batch: places if count == len(batch.reqs) else -1
    assert rig.renewals.needs_row(adder, Caller(state_of(every=candidate))) is is_kept
