"""A pass moves positions past what was dropped, and finds the scoring rows among those of all requests."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.core.policies import SpecKv  # noqa: E402 - the plugin needs torch
from presift.target.sglang_plugin import attention  # noqa: E402
from presift.target.sglang_plugin.attention import ForwardPass  # noqa: E402
from presift.target.sglang_plugin.kv_selector import KvSelector  # noqa: E402
from presift.target.sglang_plugin.states import PassthroughState, Report, ScoringState  # noqa: E402
from presift.target.sglang_plugin.verified_lookahead import VerifiedLookahead  # noqa: E402

from .fakes import KEPT, PROMPT_TOKENS, Request, compressed  # noqa: E402

HEADS, KV_HEADS, DIM = 4, 2, 8
SHIFT = PROMPT_TOKENS - 1 - KEPT


class Row(Request):
    """A request in the table's row of its own."""

    place: int = 0

    @property
    def kv(self) -> Any:
        return SimpleNamespace(req_pool_idx=self.place)


class Machine:
    """One layer, and a pool whose slots are in no order."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keys = torch.randn(200, KV_HEADS, DIM, generator=generator)
        self.table = torch.randperm(200, generator=generator)[:120].view(4, 30).int()
        self.token_to_kv_pool = SimpleNamespace(get_key_buffer=lambda layer: self.keys)
        self.req_to_token_pool = SimpleNamespace(req_to_token=self.table)
        self.layer = SimpleNamespace(layer_id=0, tp_q_head_num=HEADS, qk_head_dim=DIM, scaling=DIM**-0.5)

    def keys_of(self, place: int, end: int) -> torch.Tensor:
        return self.keys[self.table[place, :end].long()]


def broken(*_: Any) -> Any:
    raise ValueError("a defect")


def forward(positions: list[int] | None, mode: str) -> Any:
    return SimpleNamespace(
        positions=None if positions is None else torch.tensor(positions),
        forward_mode=SimpleNamespace(
            is_extend=lambda: mode == "extend", is_decode_or_idle=lambda: mode in ("decode", "idle")
        ),
    )


def batch(*requests: Any, prefixes: list[int] | None = None, lengths: list[int] | None = None) -> Any:
    for place, request in enumerate(requests):
        request.place = place
    lengths = lengths or []
    return SimpleNamespace(
        reqs=requests,
        prefix_lens=prefixes or [],
        extend_lens=lengths,
        seq_lens_cpu=torch.arange(10, 10 + len(requests)),
    )


def scoring(layers: int = 1) -> Row:
    policy = SpecKv(capacity=KEPT, window=3, kernel=1)
    protected = torch.zeros(PROMPT_TOKENS - 4, dtype=torch.bool)
    return Row("s", ScoringState(compressed(), KvSelector(policy, PROMPT_TOKENS, 2, KEPT, layers, protected)))


def test_ordinary_passes_are_left_as_they_are() -> None:
    run, seen = ForwardPass(), forward([3, 4], "decode")
    positions = seen.positions
    run.begin(seen, batch(Row("a"), Row("b", PassthroughState(Report(1, 1, 0)))), Machine())
    assert seen.positions is positions or torch.equal(seen.positions, positions)
    run.on_attention(torch.zeros(2, HEADS * DIM), None)


def test_positions_of_a_decode_step_go_on_after_the_whole_prompt() -> None:
    seen = forward([9, 5, 12], "decode")
    ForwardPass().begin(seen, batch(Row("a", compressed()), Row("b"), Row("c", compressed())), Machine())
    assert seen.positions.tolist() == [9 + SHIFT, 5, 12 + SHIFT]
    assert seen.positions.dtype == torch.int64


def test_rows_behind_those_of_the_requests_are_left_where_they_are() -> None:
    """The members of a beam, in a batch with a request on its entry."""
    seen = forward([9, 5, 6, 7], "decode")
    run = ForwardPass()
    run.begin(seen, batch(Row("a", compressed()), Row("b")), Machine())
    assert seen.positions.tolist() == [9 + SHIFT, 5, 6, 7]
    assert not run.has_scoring_rows


def test_a_pass_has_scoring_rows_only_if_a_selector_needs_them() -> None:
    machine, run = Machine(), ForwardPass()
    assert not run.has_scoring_rows
    run.begin(forward(list(range(22)), "extend"), batch(scoring(), prefixes=[0], lengths=[22]), machine)
    assert run.has_scoring_rows
    for mode, request in (("decode", scoring()), ("extend", Row("a")), ("extend", Row("b", compressed()))):
        run.begin(forward([9], mode), batch(request, prefixes=[8], lengths=[1]), machine)
        assert not run.has_scoring_rows


def test_positions_of_an_extend_step_are_moved_for_each_new_token() -> None:
    seen = forward([8, 9, 10, 0, 1, 8], "extend")
    requests = Row("a", compressed(suffix_tokens=2)), Row("b"), Row("c", compressed())
    ForwardPass().begin(seen, batch(*requests, prefixes=[8, 0, 8], lengths=[3, 2, 1]), Machine())
    assert seen.positions.tolist() == [19, 20, 21, 0, 1, 19]


@pytest.mark.parametrize("mode", ["decode", "extend"])
def test_shifts_reach_the_device_without_a_wait(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    copied: list[Any] = []
    monkeypatch.setattr(attention, "to_device", lambda values, device: copied.append(device) or values.to(device))
    seen = forward([9], mode)
    # Values of this device cannot be read.
    seen.positions = seen.positions.to("meta")
    ForwardPass().begin(seen, batch(Row("a", compressed()), prefixes=[8], lengths=[1]), Machine())
    assert copied == [torch.device("meta")]


def test_an_idle_pass_has_no_positions() -> None:
    seen = forward(None, "idle")
    ForwardPass().begin(seen, batch(Row("a", compressed())), Machine())
    assert seen.positions is None


def test_a_scoring_request_keeps_its_positions() -> None:
    seen = forward(list(range(22)), "extend")
    ForwardPass().begin(seen, batch(scoring(), prefixes=[0], lengths=[22]), Machine())
    assert seen.positions.tolist() == list(range(22))


@pytest.mark.parametrize("cuts", [[22], [10, 22], [16, 22], [18, 22], [5, 17, 20, 21, 22], [21, 22]], ids=str)
def test_the_rows_of_any_chunks_score_against_the_keys_in_the_pool(cuts: list[int]) -> None:
    """In a mixed batch, between an ordinary request and one on its entry."""
    machine, request, run = Machine(), scoring(), ForwardPass()
    queries = torch.randn(22, HEADS, DIM, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(50, HEADS, DIM)
    for first, end in zip([0, *cuts[:-1]], cuts, strict=True):
        mixed = batch(Row("a"), request, Row("c", compressed()), prefixes=[7, first, 8], lengths=[4, end - first, 1])
        run.begin(forward([*range(7, 11), *range(first, end), 8], "extend"), mixed, machine)
        rows = torch.cat([noise[:4], queries[first:end], noise[4:5]])
        run.on_attention(rows.view(-1, HEADS * DIM), machine.layer)
        run.begin(forward([9] * 50, "decode"), batch(Row("d")), machine)
        run.on_attention(noise.view(50, -1), machine.layer)
        request.place = 1

    alone = scoring().state.selector
    alone.add(0, queries[16:], 16, machine.keys_of(1, 22), DIM**-0.5)
    assert request.state.selector.is_complete
    assert torch.equal(request.state.selector.kept[0], alone.kept[0])
    assert request.state.selector.attention == pytest.approx(alone.attention)


def test_a_given_mask_and_a_decode_step_show_no_rows() -> None:
    machine, run = Machine(), ForwardPass()
    given = Row("s", ScoringState(compressed(), None))
    run.begin(forward(list(range(22)), "extend"), batch(given, prefixes=[0], lengths=[22]), machine)
    run.on_attention(torch.zeros(22, HEADS * DIM), machine.layer)
    request = scoring()
    run.begin(forward([22], "decode"), batch(request), machine)
    run.on_attention(torch.zeros(1, HEADS * DIM), machine.layer)
    assert request.state.selector.kept == {}


def test_two_prompts_in_one_pass_are_scored_apart() -> None:
    machine, run, first, second = Machine(), ForwardPass(), scoring(), scoring()
    queries = torch.randn(44, HEADS, DIM, generator=torch.Generator().manual_seed(2))
    both = batch(first, second, prefixes=[0, 0], lengths=[22, 22])
    run.begin(forward([*range(22)] * 2, "extend"), both, machine)
    run.on_attention(queries.view(-1, HEADS * DIM), machine.layer)
    for place, request in enumerate((first, second)):
        alone = scoring().state.selector
        alone.add(0, queries[22 * place + 16 : 22 * place + 22], 16, machine.keys_of(place, 22), DIM**-0.5)
        assert torch.equal(request.state.selector.kept[0], alone.kept[0])


@pytest.mark.parametrize("fails_in", [0, 1])
def test_a_prompt_that_cannot_be_scored_is_left_incomplete_and_the_others_are_scored(fails_in: int) -> None:
    """The pass goes on: other requests are in it."""
    machine, run, broken, whole = Machine(), ForwardPass(), scoring(), scoring()
    add, calls = broken.state.selector.add, []

    def fail(*arguments: Any, **slots: Any) -> None:
        calls.append(arguments)
        if len(calls) == fails_in + 1:
            raise RuntimeError("out of memory")
        add(*arguments, **slots)

    broken.state.selector = SimpleNamespace(first_row=16, end_row=22, layers=1, add=fail)
    queries = torch.randn(2, 22, HEADS, DIM, generator=torch.Generator().manual_seed(3))
    for first, end in ((0, 18), (18, 22)):
        both = batch(broken, whole, prefixes=[first] * 2, lengths=[end - first] * 2)
        run.begin(forward([*range(first, end)] * 2, "extend"), both, machine)
        run.on_attention(queries[:, first:end].reshape(-1, HEADS * DIM), machine.layer)
    assert len(calls) == 2
    assert not add.__self__.is_complete
    assert whole.state.selector.is_complete


@pytest.mark.parametrize("name", ["_rows", "_predicting"])
def test_a_pass_whose_rows_cannot_be_noted_has_right_positions_and_selects_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The selection stays incomplete, so that its build fails."""
    machine, run, request = Machine(), ForwardPass(), scoring()
    monkeypatch.setattr(attention, name, broken)
    seen = forward([9, *range(22)], "extend")
    run.begin(seen, batch(Row("a", compressed()), request, prefixes=[9, 0], lengths=[1, 22]), machine)
    assert seen.positions.tolist() == [9 + SHIFT, *range(22)]
    assert not run.has_scoring_rows
    assert not run.has_lookahead_rows
    assert not request.state.selector.is_complete


def test_a_decode_step_that_cannot_be_counted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_count_steps", broken)
    seen = forward([9], "decode")
    ForwardPass().begin(seen, batch(Row("a", compressed())), Machine())
    assert seen.positions.tolist() == [9 + SHIFT]


def test_a_pass_with_wrong_positions_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write wrong KV, also for other requests."""
    monkeypatch.setattr(attention, "_per_token", broken)
    with pytest.raises(ValueError, match="a defect"):
        ForwardPass().begin(forward([9], "decode"), batch(Row("a", compressed())), Machine())


def test_after_its_last_layer_a_pass_holds_nothing_of_what_was_scored(no_collector: None) -> None:
    machine, run, request = Machine(), ForwardPass(), scoring(layers=2)
    request.state.lookahead = VerifiedLookahead(PROMPT_TOKENS, (50, 51))
    run.begin(forward(list(range(22)), "extend"), batch(request, prefixes=[0], lengths=[22]), machine)
    held = [weakref.ref(run._rows[0].slots)]
    for machine.layer.layer_id in range(2):
        assert run.has_scoring_rows
        run.on_attention(torch.randn(22, HEADS * DIM), machine.layer)
    assert not run.has_scoring_rows
    assert run.has_lookahead_rows
    run.on_logits(None, torch.zeros(22, 4), None, None)
    assert not run.has_lookahead_rows
    held += [weakref.ref(kept) for kept in request.state.selector.kept.values()]
    assert [each() is None for each in held] == [True, False, False]
    request.state.release()
    assert [each() is None for each in held] == [True] * 3


def test_decode_steps_count_the_kv_of_prompt_and_answer() -> None:
    run, made, untouched = ForwardPass(), Row("a", compressed()), Row("b", PassthroughState(Report(1, 1, 0)))
    made.state.record_reuse(KEPT, None)
    # Not admitted yet, so nothing is reported of it.
    waiting = Row("c", compressed())
    for lengths in ([9, 5, 7], [10, 6, 8], [12, 7, 9]):
        step = batch(made, untouched, waiting, Row("d"))
        # Beam search adds rows.
        step.seq_lens_cpu = torch.tensor([*lengths, 50, 60])
        run.begin(forward([0] * 5, "decode"), step, Machine())
    run.begin(forward([0] * 4, "extend"), batch(made, untouched, prefixes=[8, 1], lengths=[1, 3]), Machine())

    values = made.state.report.values()
    assert (values["kv_tokens_peak"], values["kv_tokens_mean"]) == (12, pytest.approx(31 / 3))
    assert untouched.state.report.values()["kv_tokens_peak"] == 7
    assert waiting.state.report is None


def predicted(run: ForwardPass, prefix: int, length: int, request: Row, fails: bool = False) -> bool:
    """One pass over positions `prefix` to `prefix + length` of `request`, behind another's 3 rows; after position i,
    token 100 + i is the most likely. True if some of the rows predict the lookahead.
    """
    run.begin(forward([0], "extend"), batch(Row("a"), request, prefixes=[5, prefix], lengths=[3, length]), Machine())
    states = torch.tensor([0.0] * 3 + [100.0 + i for i in range(prefix, prefix + length)])[:, None]

    def logits(block: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if fails:
            raise RuntimeError("out of memory")
        return torch.nn.functional.one_hot(block[:, 0].long(), 200)

    has_rows = run.has_lookahead_rows
    run.on_logits(SimpleNamespace(_get_logits=logits), states, None, None)
    return has_rows


@pytest.mark.parametrize("cuts", [[22], [19, 22], [20, 22], [19, 20, 21, 22], [21, 22]], ids=str)
def test_the_rows_that_predict_the_lookahead_are_found_in_any_chunks(cuts: list[int]) -> None:
    request, run = scoring(), ForwardPass()
    request.state.lookahead = VerifiedLookahead(PROMPT_TOKENS - 1, (119, 120))
    for first, end in zip([0, *cuts[:-1]], cuts, strict=True):
        assert predicted(run, first, end - first, request) == (first < 21 and end > 19)
    assert [token for _, token in request.state.lookahead.choices()] == [119, 120]


def test_a_lookahead_that_cannot_be_verified_does_not_end_the_pass() -> None:
    request = scoring()
    request.state.lookahead = VerifiedLookahead(PROMPT_TOKENS - 1, (119, 120))
    predicted(ForwardPass(), 0, 22, request, fails=True)
    assert request.state.lookahead.choices() == []
