"""The torch kernel chooses what the numpy reference chooses, however the rows come in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from presift.core.kv_plan import KvPlan
from presift.core.policies import Pool, Reduction, SpecKv
from presift.core.spans import Span

from ....reference.kv_selection import kv_importance, scoring_rows, select_kv

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from presift.target.sglang_plugin import kv_selector  # noqa: E402 - it needs torch

DIM = 16


@dataclass(frozen=True)
class Task:
    """Random rotated states of one prompt with its lookahead: per layer queries [n + L, heads, d] and keys."""

    policy: SpecKv
    prompt_tokens: int = 90
    lookahead_tokens: int = 5
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    protected: tuple[Span, ...] = ()
    seed: int = 0
    reports_mask: bool = False

    def states(self, layer: int, dtype: Any = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + layer)
        tokens = self.prompt_tokens + self.lookahead_tokens
        queries = torch.randn(tokens, self.heads, DIM, generator=generator) * 2
        return queries.to(dtype), torch.randn(tokens, self.kv_heads, DIM, generator=generator).to(dtype)

    def selector(self) -> kv_selector.KvSelector:
        first_row = self.prompt_tokens - 1 - self.policy.window
        kept = KvPlan(self.policy, self.protected).must_keep(self.prompt_tokens)
        return kv_selector.KvSelector(
            self.policy,
            self.prompt_tokens,
            self.lookahead_tokens,
            self.policy.capacity,
            self.layers,
            torch.from_numpy(kept[:first_row]),
            reports_mask=self.reports_mask,
        )

    def run(self, cuts: tuple[int, ...] = (), dtype: Any = torch.float32) -> kv_selector.KvSelector:
        """The rows come in chunks, cut before the rows `cuts`; all layers of a chunk, as a model runs."""
        run = self.selector()
        edges = [run.first_row, *(run.first_row + cut for cut in sorted({*cuts})), run.end_row]
        for first, end in itertools.pairwise(edges):
            for layer in range(self.layers):
                queries, keys = self.states(layer, dtype)
                run.add(layer, queries[first:end], first, keys[:end], DIM**-0.5)
        return run

    def expected(self, layer: int, dtype: Any = torch.float32) -> NDArray[np.bool_]:
        """bool[kv_heads, n - 1], from the numpy reference."""
        queries, keys = (state.float().numpy() for state in self.states(layer, dtype))
        rows = scoring_rows(self.policy.window, self.lookahead_tokens)
        importance = kv_importance(queries[-rows:], keys, self.policy)
        return select_kv(importance, self.policy.capacity, self.policy.window, self.protected)


def chosen(run: kv_selector.KvSelector) -> list[list[list[int]]]:
    """Per layer and head, in the order of the layers."""
    return [run.kept[layer].tolist() for layer in range(run.layers)]


def indices(flags: NDArray[np.bool_]) -> list[list[int]]:
    return [np.flatnonzero(head).tolist() for head in flags]


def assert_as_the_reference(task: Task, dtype: Any = torch.float32, cuts: tuple[int, ...] = ()) -> None:
    run = task.run(cuts, dtype)
    assert run.is_complete
    assert chosen(run) == [indices(task.expected(layer, dtype)) for layer in range(task.layers)]


@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.parametrize("pool", Pool)
@pytest.mark.parametrize("kernel", [1, 3, 7, 31, 1025])
def test_it_is_the_reference(reduction: Reduction, pool: Pool, kernel: int) -> None:
    assert_as_the_reference(Task(SpecKv(capacity=24, window=8, reduction=reduction, pool=pool, kernel=kernel)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("reduction", Reduction)
def test_heads_of_a_group_choose_together(heads: int, kv_heads: int, reduction: Reduction) -> None:
    policy = SpecKv(capacity=24, window=8, reduction=reduction)
    assert_as_the_reference(Task(policy, heads=heads, kv_heads=kv_heads, seed=1))


@pytest.mark.parametrize(("window", "capacity", "prompt_tokens"), [(1, 2, 90), (8, 9, 90), (8, 88, 90), (3, 4, 6)])
@pytest.mark.parametrize("lookahead_tokens", [0, 1, 24])
def test_windows_capacities_and_lookaheads(
    window: int, capacity: int, prompt_tokens: int, lookahead_tokens: int
) -> None:
    policy = SpecKv(capacity=capacity, window=window, kernel=3)
    assert_as_the_reference(Task(policy, prompt_tokens, lookahead_tokens, seed=2))


@pytest.mark.parametrize("reduction", Reduction)
def test_protected_tokens_are_kept_in_every_layer_and_head(reduction: Reduction) -> None:
    policy = SpecKv(capacity=24, window=8, reduction=reduction)
    task = Task(policy, protected=(Span(5, 9), Span(40, 50), Span(80, 85), Span(89, 90)), seed=3)
    assert_as_the_reference(task)
    wanted = {*range(5, 9), *range(40, 50), *range(81, 89)}
    for head in itertools.chain.from_iterable(chosen(task.run())):
        assert wanted <= set(head)
        assert len(head) == 24


def test_protected_tokens_may_fill_all_places() -> None:
    task = Task(SpecKv(capacity=24, window=8), protected=(Span(10, 26),))
    assert chosen(task.run()) == [[[*range(10, 26), *range(81, 89)]] * 2] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_scored_in_float32(dtype: Any) -> None:
    assert_as_the_reference(Task(SpecKv(capacity=24, window=8), seed=4), dtype, (3, 9))


def coverage(run: kv_selector.KvSelector) -> float | None:
    """As a target's only rank reports it."""
    return kv_selector.coverage_of([run.attention])


def coverage_by_definition(task: Task) -> float:
    """Float64, every row against every key: the share of what prompt tokens are given that kept ones are given."""
    held, total = 0.0, 0.0
    for layer in range(task.layers):
        queries, keys = (state.double() for state in task.states(layer))
        kept, n = task.expected(layer), task.prompt_tokens
        for head in range(task.kv_heads):
            mass = torch.zeros(n, dtype=torch.float64)
            group = task.heads // task.kv_heads
            for row in range(n - 1 - task.policy.window, n + task.lookahead_tokens):
                for query in queries[row, head * group : (head + 1) * group]:
                    weights = torch.softmax(keys[: row + 1, head] @ query / DIM**0.5, dim=0)
                    mass[: min(row + 1, n)] += weights[:n]
            flags = torch.from_numpy(np.append(kept[head], True))
            held, total = held + float(mass[flags].sum()), total + float(mass.sum())
    return held / total


@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.parametrize("lookahead_tokens", [0, 7])
def test_coverage_is_the_share_of_the_summed_rows_on_kept_prompt_tokens(
    reduction: Reduction, lookahead_tokens: int
) -> None:
    policy = SpecKv(capacity=24, window=8, reduction=reduction, pool=Pool.MEAN)
    task = Task(policy, lookahead_tokens=lookahead_tokens, layers=3, protected=(Span(0, 4),), seed=5)
    run = task.run((2,))
    assert coverage(run) == pytest.approx(coverage_by_definition(task), rel=1e-5)
    assert 0.2 < coverage(run) < 0.95


def test_coverage_is_1_where_almost_nothing_is_dropped_and_none_where_nothing_was_scored() -> None:
    policy = SpecKv(capacity=88, window=8, kernel=1)
    assert coverage(Task(policy).selector()) is None
    found = coverage(Task(policy).run())
    assert found is not None and 0.99 < found <= 1.0


CUTS = st.lists(st.integers(1, 13), max_size=6).map(tuple)


@settings(deadline=None, max_examples=30)
@given(cuts=CUTS, reduction=st.sampled_from(Reduction), seed=st.integers(0, 3))
def test_rows_in_any_chunks_choose_the_same(cuts: tuple[int, ...], reduction: Reduction, seed: int) -> None:
    task = Task(SpecKv(capacity=24, window=8, reduction=reduction), protected=(Span(2, 5),), seed=seed)
    whole, cut = task.run(), task.run(cuts)
    assert chosen(cut) == chosen(whole)
    assert coverage(cut) == pytest.approx(coverage(whole), rel=1e-6)


@pytest.mark.parametrize("block_bytes", [1, 4 * 95 * 2 * 3, 4 * 95 * 2 * 14 - 1])
@pytest.mark.parametrize("reduction", Reduction)
def test_rows_in_any_blocks_choose_the_same(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, reduction: Reduction
) -> None:
    task = Task(SpecKv(capacity=24, window=8, reduction=reduction), seed=6)
    whole = task.run()
    seen = []

    def spy(block: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(softmax(block, *others))
        return seen[-1]

    softmax = kv_selector._softmax
    monkeypatch.setattr(kv_selector, "_softmax", spy)
    monkeypatch.setattr(kv_selector, "BLOCK_BYTES", block_bytes)
    blocks = task.run()
    assert chosen(blocks) == chosen(whole)
    assert coverage(blocks) == pytest.approx(coverage(whole), rel=1e-6)
    one_row = 4 * 95 * 2
    assert max(weights.numel() * 4 for weights in seen) <= max(block_bytes, one_row)
    assert len(seen) > 2 * task.layers


@pytest.mark.parametrize("pool", [Pool.NONE, Pool.MAX])
@pytest.mark.parametrize("protected", [(), (Span(50, 53),)])
def test_of_equal_keys_the_first_are_kept(pool: Pool, protected: tuple[Span, ...]) -> None:
    task = Task(SpecKv(capacity=24, window=8, pool=pool), protected=protected)
    run = task.selector()
    queries = torch.randn(95, 4, DIM, generator=torch.Generator().manual_seed(0))
    for layer in range(task.layers):
        run.add(layer, queries[81:], 81, torch.ones(95, 2, DIM), DIM**-0.5)
    must = [i for span in protected for i in range(span.start, span.end)]
    expected = [*range(16 - len(must)), *must, *range(81, 89)]
    assert chosen(run) == [[expected] * 2] * 2


def test_large_scores_do_not_overflow() -> None:
    task = Task(SpecKv(capacity=10, window=8, kernel=1), layers=1)
    run, keys = task.selector(), torch.ones(95, 2, DIM)
    keys[37], keys[64] = 2, 3
    run.add(0, torch.full((14, 4, DIM), 1e4), 81, keys, DIM**-0.5)
    assert chosen(run) == [[[0, 64, *range(81, 89)]] * 2]
    assert coverage(run) == 1.0


def test_keys_may_lie_anywhere_in_a_pool() -> None:
    task = Task(SpecKv(capacity=24, window=8), seed=8)
    run, slots = task.selector(), torch.randperm(200, generator=torch.Generator().manual_seed(0))[:95]
    for layer in range(task.layers):
        queries, keys = task.states(layer)
        pool = torch.full((200, 2, DIM), torch.nan)
        pool[slots] = keys
        for first, end in ((81, 84), (84, 95)):
            run.add(layer, queries[first:end], first, pool, DIM**-0.5, slots=slots[:end])
    assert chosen(run) == chosen(task.run())


def test_it_is_complete_when_the_last_row_of_every_layer_was_seen() -> None:
    task = Task(SpecKv(capacity=24, window=8))
    run = task.selector()
    for layer, (first, end), complete in [
        (0, (81, 90), False),
        (1, (81, 90), False),
        (0, (90, 95), False),
        (1, (90, 95), True),
    ]:
        queries, keys = task.states(layer)
        run.add(layer, queries[first:end], first, keys[:end], DIM**-0.5)
        assert run.is_complete is complete
    assert run.ms > 0.0


@pytest.mark.parametrize("chunks", [[(82, 95)], [(90, 95)], [(81, 84), (85, 95)]], ids=str)
def test_a_layer_of_which_rows_are_missing_is_never_complete(chunks: list[tuple[int, int]]) -> None:
    run = Task(SpecKv(capacity=24, window=8), layers=1).selector()
    queries, keys = Task(SpecKv(capacity=24, window=8)).states(0)
    with pytest.raises(ValueError, match="rows are missing"):
        for first, end in chunks:
            run.add(0, queries[first:end], first, keys[:end], DIM**-0.5)
    assert not run.is_complete


def test_a_layer_that_is_scored_twice_is_not_trusted() -> None:
    """The second time may be of other rows: a backend that computes a batch in parts."""
    task = Task(SpecKv(capacity=24, window=8))
    run, (queries, keys) = task.run(), task.states(1)
    with pytest.raises(ValueError, match="layer 1 was scored twice"):
        run.add(1, queries[81:], 81, keys, DIM**-0.5)
    assert not run.is_complete


@pytest.mark.parametrize("seen", [1, 2])
def test_restart_forgets(seen: int) -> None:
    """A request that is taken back begins anew: half a chunk or a whole layer of the first run must not count."""
    task, other = Task(SpecKv(capacity=24, window=8)), Task(SpecKv(capacity=24, window=8), seed=9)
    run = task.selector()
    queries, keys = other.states(0)
    for first, end in [(81, 90), (90, 95)][:seen]:
        run.add(0, queries[first:end], first, keys[:end], DIM**-0.5)
    run.reset()
    assert (run.kept, coverage(run), run.ms, run.is_complete) == ({}, None, 0.0, False)
    for layer in range(task.layers):
        queries, keys = task.states(layer)
        run.add(layer, queries[81:], 81, keys, DIM**-0.5)
    assert chosen(run) == chosen(task.run())
    assert coverage(run) == coverage(task.run())


def test_the_mask_is_of_the_model_and_keeps_the_final_token() -> None:
    task = Task(SpecKv(capacity=24, window=8), layers=3, seed=7, reports_mask=True)
    mask = task.run().mask
    assert mask.kept.shape == (3, 2, 90)
    assert mask.kept[..., -1].all()
    assert [indices(layer[:, :-1]) for layer in mask.kept] == chosen(task.run())
    assert (np.count_nonzero(mask.kept, axis=2) == 25).all()


def test_a_mask_that_was_not_asked_for_is_not_copied_to_the_host() -> None:
    with pytest.raises(AssertionError, match="not copied"):
        _ = Task(SpecKv(capacity=24, window=8)).run().mask


class Copies(TorchDispatchMode):
    """Counts the copies between devices. Values of the device `meta` cannot be read: reads raise."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {each.device for each in args if isinstance(each, torch.Tensor)}
        devices |= (
            {torch.device(kwargs["device"])} if kwargs and kwargs.get("device") is not None and devices else set()
        )
        self.count += len(devices) > 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reports_mask", [True, False])
@pytest.mark.parametrize("reduction", Reduction)
def test_selecting_reads_nothing_from_the_device_and_copies_once_to_it(
    monkeypatch: pytest.MonkeyPatch, reduction: Reduction, reports_mask: bool
) -> None:
    begun: list[torch.Tensor] = []
    monkeypatch.setattr(kv_selector, "HostCopy", begun.append)
    task = Task(SpecKv(capacity=24, window=8, reduction=reduction), layers=5, reports_mask=reports_mask)
    run, states = task.selector(), [[each.to("meta") for each in task.states(layer)] for layer in range(task.layers)]
    with Copies() as copies:
        for first, end in [(81, 90), (90, 95)]:
            for layer, (queries, keys) in enumerate(states):
                run.add(layer, queries[first:end], first, keys[:end], DIM**-0.5)
    assert run.is_complete
    # The totals, and the kept tokens of all layers at once, are on their way to the host.
    assert [tuple(each.shape) for each in begun] == [(2,), (5, 2, 24)][: 1 + reports_mask]
    assert copies.count == 1


def test_queries_are_no_longer_needed_after_the_call() -> None:
    """A backend may reuse the buffer that its queries lie in."""
    task = Task(SpecKv(capacity=24, window=8), layers=1)
    queries, keys = task.states(0)
    run, buffer = task.selector(), queries.clone()
    run.add(0, buffer[81:90], 81, keys[:90], DIM**-0.5)
    buffer.zero_()
    run.add(0, queries[90:], 90, keys, DIM**-0.5)
    assert chosen(run) == chosen(task.run())
