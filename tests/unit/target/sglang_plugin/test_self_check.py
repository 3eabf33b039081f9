"""The check believes what the scheduler answers, not what it says, and lets no request drop KV before it has passed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.models.torchvision_ops import declare_missing  # noqa: E402 - the plugin needs torch
from presift.target.sglang_plugin import self_check  # noqa: E402
from presift.target.sglang_plugin.custom_params import KEY  # noqa: E402
from presift.target.sglang_plugin.ranks import ALONE, Ranks  # noqa: E402
from presift.target.sglang_plugin.self_check import Answer, SelfCheck, agree  # noqa: E402
from presift.target.sglang_plugin.states import DecodeState, state_of  # noqa: E402

from .fakes import on_ranks  # noqa: E402

LIKELY = {5: -0.5, 6: -1.5, 7: -3.0}
RUNNING = "the self-check is running"


@dataclass(eq=False)
class Asked:
    """A request of the check, and the answer that the scheduler will give."""

    prompt: array[int]
    state: DecodeState | None
    is_finished: bool = False
    tokens: list[int] = field(default_factory=lambda: [5, 5, 5, 5])
    likely: list[dict[int, float]] = field(default_factory=lambda: [dict(LIKELY) for _ in range(4)])
    finished_reason: Any = None
    keys: Any = field(init=False)
    rid: str = "presift-own"
    finished_output: bool | None = None
    kv: Any = field(default_factory=lambda: SimpleNamespace(holds_kv=False))

    def __post_init__(self) -> None:
        # A key says its token's position in prompt and answer, which past dropped KV is not its place in the row.
        shift = 0 if self.state is None else self.state.shift
        self.keys = 1.0 + torch.arange(shift, len(self.prompt) + 3).unsqueeze(1)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(custom_params=None if self.state is None else {KEY: self.state})

    @property
    def output_ids(self) -> list[int]:
        return self.tokens

    @property
    def logprob(self) -> Any:
        return SimpleNamespace(
            output_top_logprobs_idx=[list(each) for each in self.likely],
            output_top_logprobs_val=[list(each.values()) for each in self.likely],
        )

    def finished(self) -> bool:
        return self.is_finished


Spoil = Callable[[int, Asked], None]


class Rig:
    """A check in a fake scheduler that finds entries again. `spoil` may change the n-th request's answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ranks: Ranks = ALONE) -> None:
        self.dtype, self.page_size = torch.float32, 1
        self.asked: list[Asked] = []
        self.handled: list[Any] = []
        self.spoil: Spoil = lambda place, asked: None
        self.entries: set[str] = set()
        pool = SimpleNamespace(dtype=self.dtype)
        self.scheduler = SimpleNamespace(
            page_size=1,
            model_config=SimpleNamespace(vocab_size=512),
            max_req_len=1000,
            max_total_num_tokens=1000,
            token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: pool),
            waiting_queue=[],
            _add_request_to_queue=self.queue,
            handle_generate_request=lambda received, **others: self.handled.append((received.rid, others)),
        )
        self.pool = pool
        monkeypatch.setattr(self_check, "checking_request", lambda scheduler, prompt, state: Asked(prompt, state))
        monkeypatch.setattr(self_check, "row_keys", lambda scheduler, asked: asked.keys)
        monkeypatch.setattr(self_check, "engine_identity", lambda scheduler: ("model",))
        self.builder: Any = SimpleNamespace(builds={})
        self.check = SelfCheck(self.scheduler, self.builder, ranks)

    def queue(self, asked: Asked) -> None:
        self.asked.append(asked)
        self.scheduler.waiting_queue.append(asked)

    def answer(self) -> None:
        asked = self.asked[-1]
        if asked not in self.scheduler.waiting_queue:
            return
        self.scheduler.waiting_queue.remove(asked)
        if asked.state is not None:
            if asked.state.entry in self.entries:
                asked.state.record_reuse(asked.state.kept, None)
            else:
                asked.state.record_build(0, score_ms=1.0, publish_ms=1.0, coverage=0.5)
                self.entries.add(asked.state.entry)
        asked.kv.holds_kv = True
        self.spoil(len(self.asked), asked)
        self.check.step()
        asked.is_finished, asked.kv.holds_kv = True, False

    def starts(self) -> int:
        """With how many prompts the check has begun. Its last request continues one with an answer."""
        return len({asked.prompt[0] for asked in self.asked})

    def run(self, steps: int = 30) -> str | None:
        for _ in range(steps):
            self.check.step()
            if not self.check.is_running:
                break
            self.answer()
        return self.check.reason

    def pause(self, most: int = 20_000) -> int:
        """How many steps pass until the check asks again; `most` if it does not."""
        asked = len(self.asked)
        for steps in range(1, most + 1):
            self.check.step()
            if len(self.asked) > asked:
                return steps
        return most

    def repeat(self) -> str | None:
        """Wait for a repetition of the check, and answer it."""
        self.pause()
        for _ in range(30):
            self.answer()
            self.check.step()
        return self.check.reason


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 100])
def test_a_scheduler_that_drops_kv_correctly(rig: Rig, page_tokens: int) -> None:
    rig.scheduler.page_size = page_tokens
    assert (rig.check.reason, rig.check.is_running) == (RUNNING, True)
    assert rig.run() is None
    assert not rig.check.is_running
    kept = [None if asked.state is None else asked.state.kept for asked in rig.asked]
    whole = len(rig.asked[0].prompt) - 1
    assert kept == [None, None, whole, whole // 2, whole // 2, None]
    assert whole % (2 * page_tokens) == 0
    assert rig.starts() == 1
    assert rig.asked[5].prompt == rig.asked[0].prompt + array("q", [5, 5])
    rig.check.step()
    assert len(rig.asked) == 6


@pytest.mark.parametrize(
    ("limits", "failure"),
    [
        ({"max_total_num_tokens": 266}, "it needs more than 266 KV slots, the pool has 266"),
        ({"max_total_num_tokens": 267}, None),
        ({"max_req_len": 137}, "it needs a context of more than 137 tokens, 137 fit"),
        ({"max_req_len": 138}, None),
        ({"page_size": 16, "max_total_num_tokens": 296}, "it needs more than 296 KV slots, the pool has 296"),
    ],
    ids=str,
)
def test_what_would_never_be_admitted_is_not_asked(rig: Rig, limits: dict[str, int], failure: str | None) -> None:
    vars(rig.scheduler).update(limits)
    reason = rig.run()
    assert reason == (None if failure is None else f"the self-check failed: {failure}")
    assert bool(rig.asked) == (failure is None)
    assert not rig.check.is_running


def test_a_step_asks_nothing_until_the_last_answer_is_complete(rig: Rig) -> None:
    for _ in range(3):
        rig.check.step()
    assert len(rig.asked) == 1
    rig.answer()
    rig.check.step()
    assert len(rig.asked) == 2


def test_token_ids_stay_within_a_small_vocabulary(rig: Rig) -> None:
    rig.scheduler.model_config.vocab_size = 32
    assert rig.run() is None
    assert all(max(asked.prompt) < 32 for asked in rig.asked)


def other_tokens(place: int) -> Spoil:
    def spoil(number: int, asked: Asked) -> None:
        if number == place:
            asked.tokens, asked.likely[0] = [9, 5, 5, 5], {9: -0.1, 5: -3.0}

    return spoil


def reported(place: int, **values: Any) -> Spoil:
    def spoil(number: int, asked: Asked) -> None:
        if number == place:
            assert asked.state is not None and asked.state.report is not None
            for name, value in values.items():
                setattr(asked.state.report, name, value)

    return spoil


def keys(place: int, change: Callable[[Any], Any]) -> Spoil:
    def spoil(number: int, asked: Asked) -> None:
        if number == place:
            asked.keys = change(asked.keys)

    return spoil


def unshifted_from(row: int) -> Spoil:
    return keys(5, lambda right: torch.cat([right[:row], right[row:] - 64]))


def unreported(number: int, asked: Asked) -> None:
    if asked.state is not None:
        asked.state.report = None


FAILURES: dict[str, tuple[Spoil, str]] = {
    "keep-all differs": (other_tokens(3), "with all KV kept, the answer differs from the one without a plan"),
    "keep-all kept less": (reported(3, kv_tokens=65), "65 KV tokens were held, expected 129"),
    "keep-all was ignored": (reported(3, kv_tokens=128), "128 KV tokens were held"),
    "another answer": (other_tokens(5), "the same entry gave a different answer"),
    "no positions are shifted": (unshifted_from(64), "are at wrong positions: their keys differ by 33% from the right"),
    "no decode step's positions are shifted": (unshifted_from(65), "past dropped KV are at wrong positions"),
    "the last position is wrong": (unshifted_from(66), "past dropped KV are at wrong positions"),
    "no plan was applied": (unreported, "a request with a plan was answered without one"),
}


@pytest.mark.parametrize(("spoil", "reason"), FAILURES.values(), ids=FAILURES)
def test_what_the_engine_does_wrong_is_the_reason(rig: Rig, spoil: Spoil, reason: str) -> None:
    rig.spoil = spoil
    told = rig.run()
    assert told is not None
    assert told.startswith("the self-check failed: ") and reason in told


def test_the_twin_of_keep_all_is_the_prompt_on_cached_kv(rig: Rig) -> None:
    """The first answer read it in one go: its arithmetic may differ in the last bit."""
    rig.spoil = other_tokens(1)
    assert rig.run() is None


@pytest.mark.parametrize("place", [2, 3])
def test_both_twins_are_compared(rig: Rig, place: int) -> None:
    rig.spoil = other_tokens(place)
    assert "with all KV kept" in str(rig.run())


def cut(number: int, asked: Asked) -> None:
    asked.tokens, asked.finished_reason = [5], SimpleNamespace(message="aborted by abort_all")


def evicted(number: int, asked: Asked) -> None:
    if number % 5 == 0:
        reported(number, reused_entry=False, cached_tokens=0)(number, asked)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "an answer ended after 1 tokens: aborted by abort_all"),
        (evicted, "found 0 cached tokens, expected 64"),
        (keys(5, lambda right: right[:66]), "the keys of an answer were not seen"),
    ],
)
def test_what_others_interrupt_is_repeated_with_another_prompt(rig: Rig, spoil: Spoil, reason: str) -> None:
    rig.spoil = lambda number, asked: spoil(number, asked) if number <= 5 and not rig.check._interruptions else None
    assert rig.run() is None
    assert rig.starts() == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(cut, "an answer ended after 1 tokens: aborted by abort_all"), (evicted, "found 0 cached tokens, expected 64")],
)
def test_what_is_interrupted_each_time_is_repeated_later(rig: Rig, spoil: Spoil, reason: str) -> None:
    rig.spoil = spoil
    told = rig.run()
    assert told is not None and told.startswith("the self-check was interrupted and will be repeated: ")
    assert reason in told
    assert rig.starts() == 3
    rig.spoil = lambda place, asked: None
    assert rig.repeat() is None
    assert rig.check.without_own(rig.asked) is rig.asked


def test_the_pauses_grow_up_to_a_bound(rig: Rig) -> None:
    rig.spoil = cut
    rig.run()
    pauses = []
    for _ in range(9):
        pauses.append(rig.pause())
        rig.answer()
        rig.check.step()
    assert pauses == [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]


def test_no_call_waits_for_a_repetition(rig: Rig) -> None:
    rig.spoil = cut
    rig.check.park(received("a"), {})
    rig.run()
    assert [rid for rid, _ in rig.handled] == ["a"]
    rig.pause()
    assert not rig.check.is_running and str(rig.check.reason).startswith("the self-check was interrupted")


def test_a_wrong_answer_is_final(rig: Rig) -> None:
    rig.spoil = other_tokens(3)
    reason, asked = rig.run(), len(rig.asked)
    assert rig.pause() == 20_000 and (rig.check.reason, len(rig.asked)) == (reason, asked)


def test_a_wrong_answer_of_a_repetition_is_final(rig: Rig) -> None:
    rig.spoil = cut
    rig.run()
    rig.spoil = other_tokens(len(rig.asked) + 3)
    assert "with all KV kept" in str(rig.repeat())
    assert rig.pause() == 20_000


@pytest.mark.parametrize("place", range(6))
def test_a_request_that_sglang_has_forgotten_is_not_waited_for(rig: Rig, place: int) -> None:
    """It is aborted while it is queued: it never ends."""
    for _ in range(place):
        rig.check.step()
        rig.answer()
    rig.check.step()
    rig.scheduler.waiting_queue.clear()
    assert rig.run() is None
    assert rig.starts() == 2


def test_a_queue_without_room_interrupts(rig: Rig) -> None:
    rig.scheduler._add_request_to_queue = rig.asked.append
    for _ in range(10):
        rig.check.step()
    assert "refused because the queue was full" in str(rig.check.reason)
    assert len(rig.asked) == 3
    rig.scheduler._add_request_to_queue = rig.queue
    assert rig.repeat() is None


def test_a_request_that_runs_or_waits_for_its_entry_is_not_forgotten(rig: Rig) -> None:
    rig.check.step()
    (asked,) = rig.asked
    rig.scheduler.waiting_queue.clear()
    rig.builder.builds["entry"] = SimpleNamespace(waiting=[asked])
    rig.check.step()
    rig.builder.builds.clear()
    asked.kv.holds_kv = True
    rig.check.step()
    assert rig.check._interruptions == 0
    asked.kv.holds_kv = False
    rig.check.step()
    assert rig.check._interruptions == 1


def test_an_answer_that_comes_late_is_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.check.park(received("a"), {})
    rig.check.step()
    with monkeypatch.context() as later:
        later.setattr(self_check.time, "monotonic", lambda: math.inf)
        rig.check.step()
    assert rig.check.reason == "the self-check was interrupted and will be repeated: no answer within 180 s"
    assert [rid for rid, _ in rig.handled] == ["a"]
    # It may come all the same. Until then nothing is asked.
    assert rig.pause() == 20_000
    assert rig.check.without_own(rig.asked) == []
    rig.answer()
    assert rig.check.without_own(rig.asked) == []
    assert rig.repeat() is None


def test_a_defect_of_the_check_is_a_reason_and_never_raised(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as defect:
        defect.setattr(self_check, "checking_request", lambda *_: 1 / 0)
        for _ in range(10):
            rig.check.step()
        assert rig.check.reason == "the self-check was interrupted and will be repeated: ZeroDivisionError"
    assert rig.repeat() is None


RANK_ERRORS: dict[str, tuple[Spoil, str]] = {
    "wrong answer": (other_tokens(5), "the same entry gave a different answer"),
    "defect": (lambda number, asked: setattr(asked, "likely", None), "will be repeated: TypeError"),
}


@pytest.mark.parametrize(("spoil", "reason"), RANK_ERRORS.values(), ids=RANK_ERRORS)
@pytest.mark.parametrize("failing", [0, 1])
def test_all_ranks_fail_where_one_does(
    monkeypatch: pytest.MonkeyPatch, spoil: Spoil, reason: str, failing: int
) -> None:
    def check(rank: int, ranks: Ranks) -> Any:
        rig = Rig(monkeypatch, ranks)
        rig.spoil = spoil if rank == failing else rig.spoil
        told = rig.run()
        return told, len(rig.asked)

    (one, asked), (other, asked_too) = on_ranks(check)
    assert one == other and reason in str(one)
    assert asked == asked_too


@pytest.mark.parametrize("late", [0, 1])
def test_all_ranks_give_up_by_the_clock_of_any(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    def check(rank: int, ranks: Ranks) -> Any:
        rig = Rig(monkeypatch, ranks)
        rig.check.step()
        rig.check._deadline_s = -math.inf if rank == late else math.inf
        rig.check.step()
        return rig.check.reason

    assert on_ranks(check) == ["the self-check was interrupted and will be repeated: no answer within 180 s"] * 2


def test_all_ranks_pass_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_ranks(lambda _, ranks: Rig(monkeypatch, ranks).run()) == [None, None]


def test_nobody_gets_the_answers_of_the_check(rig: Rig) -> None:
    others = ["a", "b"]
    assert rig.check.without_own(others) is others
    rig.check.step()
    assert rig.check.without_own(["a", rig.asked[0], "b"]) == others
    rig.answer()
    assert rig.check.without_own(["a", rig.asked[0], "b"]) == others
    # So SGLang, which would stream it once more, leaves it out.
    assert rig.asked[0].finished_output
    rig.run()
    assert rig.check.without_own(others) is others


def received(rid: str) -> Any:
    return SimpleNamespace(rid=rid, sampling_params=SimpleNamespace(custom_params={KEY: "{}"}))


@pytest.mark.parametrize("fails", [True, False])
def test_requests_that_came_early_are_handled_in_order_after_the_check(rig: Rig, fails: bool) -> None:
    rig.spoil = other_tokens(3) if fails else rig.spoil
    rig.check.park(received("a"), {"x": 1})
    rig.check.park(received("b"), {})
    rig.check.step()
    assert rig.handled == []
    rig.answer()
    rig.run()
    assert rig.handled == [("a", {"x": 1}), ("b", {})]


def test_an_aborted_request_that_came_early_is_where_sglang_looks_for_it(rig: Rig) -> None:
    calls = [received("a1"), received("b"), received("a2")]
    for call in calls:
        rig.check.park(call, {})
    rig.check.abort_parked("a")
    assert [rid for rid, _ in rig.handled] == ["a1", "a2"]
    # It asks for nothing that the check has not proved.
    assert [call.sampling_params.custom_params for call in calls] == [None, {KEY: "{}"}, None]
    rig.run()
    assert [rid for rid, _ in rig.handled] == ["a1", "a2", "b"]


@pytest.mark.parametrize(
    ("likely", "agrees"),
    [
        ({5: -0.5, 6: -1.5}, True),
        ({5: -0.55, 6: -1.58}, True),
        ({5: -0.5, 6: -1.9}, False),
        ({5: -0.7, 6: -1.5}, False),
        ({6: -0.5, 5: -1.5}, False),
        ({6: -0.5}, False),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_the_same_tokens_must_be_equally_likely(likely: dict[int, float], agrees: bool, place: int) -> None:
    one = Answer((5, 5, 5), (LIKELY, LIKELY, LIKELY), None)
    tokens, others = [5, 5, 5], [LIKELY, LIKELY, LIKELY]
    tokens[place], others[place] = max(likely, key=likely.__getitem__), likely
    other = Answer(tuple(tokens), tuple(others), None)
    assert agree(one, other, 0.1) is agree(other, one, 0.1) is agrees


def test_two_tokens_may_change_places_within_the_tolerance() -> None:
    one = Answer((5, 1, 1), ({5: -0.70, 6: -0.74}, {1: -0.1}, {1: -0.1}), None)
    other = Answer((6, 2, 2), ({5: -0.74, 6: -0.70}, {2: -9.0}, {2: -9.0}), None)
    assert agree(one, other, 0.05)
    assert not agree(one, other, 0.03)


@pytest.mark.parametrize(("dtype", "tolerated"), [(torch.float32, 1e-3), (torch.float16, 0.05), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_the_tolerance_is_that_of_the_kvs_type(rig: Rig, dtype: Any, tolerated: float, share: float) -> None:
    rig.pool.dtype = dtype

    def spoil(number: int, asked: Asked) -> None:
        if number == 3:
            asked.likely[2][5] -= share * tolerated

    rig.spoil = spoil
    assert (rig.run() is None) == (share < 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_keys_of_a_row_are_those_of_its_first_layer_that_are_computed(dtype: Any) -> None:
    layers = torch.arange(2 * 10 * 2 * 3, dtype=dtype).view(2, 10, 2, 3)
    rows = torch.tensor([[0, 0, 0, 0, 0], [7, 3, 9, 2, 5]], dtype=torch.int32)
    pool = SimpleNamespace(get_key_buffer=lambda layer: layers[layer])
    scheduler = SimpleNamespace(
        token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: pool),
        req_to_token_pool=SimpleNamespace(req_to_token=rows),
        forward_stream=None,
    )
    request = SimpleNamespace(origin_input_ids=[4, 4], output_ids=[5, 5], kv=SimpleNamespace(req_pool_idx=1))
    keys = self_check.row_keys(scheduler, request)
    assert keys.dtype == torch.float32
    assert keys.tolist() == layers[0, [7, 3, 9]].float().view(3, 6).tolist()


def test_keys_differ_by_their_positions_and_not_by_rounding() -> None:
    def rotated(position: int) -> torch.Tensor:
        angles = position * 1e4 ** -torch.linspace(0, 1, 8)[:7]
        one, other = rows[:, :7], rows[:, 7:14]
        turned = [one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()]
        return torch.cat([*turned, rows[:, 14:]], dim=-1)

    rows = torch.randn(3, 56, generator=torch.Generator().manual_seed(1))
    # As the biases of some models, which hide the rest in a norm: in what is hardly rotated.
    rows[:, [6, 13]] += 500
    right = rotated(128)
    assert self_check.key_difference(right, right) == 0
    assert self_check.key_difference(right.bfloat16().float(), right) < 0.01
    assert self_check.key_difference(rotated(64), right) > self_check._KEY_TOLERANCE
    one_row = right.clone()
    one_row[1] = rotated(64)[1]
    assert self_check.key_difference(one_row, right) > self_check._KEY_TOLERANCE
    assert self_check.key_difference(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


def test_the_requests_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    model = SimpleNamespace(hf_eos_token_id={1}, vocab_size=512)
    scheduler = SimpleNamespace(tokenizer=None, model_config=model, page_size=1)
    monkeypatch.setattr(self_check, "engine_identity", lambda scheduler: ("model",))
    check, prompt = SelfCheck(scheduler, SimpleNamespace(builds={})), array("q", range(20))
    plain, dropping = check._request(prompt), check._request(prompt, 9)
    for request in (plain, dropping):
        assert (request.sampling_params.top_k, request.sampling_params.max_new_tokens) == (1, 4)
        assert (request.return_logprob, request.sampling_params.ignore_eos) == (True, True)
        assert request.logprob_start_len == len(request.origin_input_ids)
        assert request.cache_salt
    assert (plain.origin_input_ids, plain.extra_key, state_of(plain)) == (prompt, None, None)
    state = state_of(dropping)
    assert isinstance(state, DecodeState)
    assert (dropping.origin_input_ids, dropping.extra_key) == (array("q", [*range(9), 19]), state.entry)
    assert (state.kept, state.prompt, state.plan.policy.capacity) == (9, prompt, 9)
