"""EntryPins lock and unlock in pairs; an entry has what each layer and head keeps."""

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
from presift.models.torchvision_ops import declare_missing  # noqa: E402
from presift.target.sglang_plugin import entry_pins  # noqa: E402
from presift.target.sglang_plugin.entry_pins import EntryPins  # noqa: E402
from presift.target.sglang_plugin.ranks import ALONE, Ranks  # noqa: E402
from presift.target.sglang_plugin.states import ScoringState  # noqa: E402

from .fakes import KEPT, PROMPT_TOKENS, Request, Tree, compressed, groups_of, on_ranks  # noqa: E402


def pass_steps(pins: EntryPins, steps: int) -> None:
    for _ in range(steps):
        pins.count_step()


def test_a_pin_expires_after_some_steps_of_the_scheduler() -> None:
    tree, nodes = Tree(), [object(), object()]
    pins = EntryPins(tree, 100, steps=60)
    pass_steps(pins, 5)
    pins.pin("a", nodes[0], 30)
    pass_steps(pins, 30)
    pins.pin("b", nodes[1], 30)
    pass_steps(pins, 29)
    assert not pins.release_except("ab")
    assert len(pins) == 2
    pins.count_step()
    assert pins.release_except("ab")
    assert list(tree.held.values()) == [nodes[1]]
    pass_steps(pins, 30)
    assert pins.release_except("ab")
    assert (len(pins), tree.held) == (0, {})


def test_pinning_again_renews() -> None:
    pins = EntryPins(Tree(), 100, steps=60)
    pins.pin("a", object(), 30)
    pass_steps(pins, 59)
    pins.pin("a", object(), 30)
    pass_steps(pins, 59)
    assert not pins.release_except({"a"})
    assert len(pins) == 1


def test_a_pin_ends_with_its_request() -> None:
    """The request left the queue without the plugin's knowledge."""
    tree = Tree()
    pins = EntryPins(tree, 100)
    for rid in "abc":
        pins.pin(rid, rid, 30)
    assert pins.release_except({"b", "c", "x"})
    assert list(tree.held.values()) == ["b", "c"]
    assert not pins.release_except({"b", "c"})
    assert pins.release_except(())
    assert (len(pins), tree.held) == (0, {})
    assert not pins.release_except(())


def test_above_the_cap_the_oldest_pins_are_released() -> None:
    tree, nodes = Tree(), [object() for _ in range(5)]
    pins = EntryPins(tree, 100)
    for place in range(3):
        pins.pin(f"{place}", nodes[place], 33)
    assert list(tree.held.values()) == nodes[:3]
    pins.pin("1", nodes[1], 33)  # the youngest now
    pins.pin("3", nodes[3], 33)
    assert set(tree.held.values()) == {nodes[2], nodes[1], nodes[3]}
    pins.pin("4", nodes[4], 66)
    assert set(tree.held.values()) == {nodes[3], nodes[4]}


def test_pins_may_fill_the_cap() -> None:
    tree = Tree()
    pins = EntryPins(tree, 100)
    pins.pin("a", object(), 50)
    pins.pin("b", object(), 50)
    assert len(tree.held) == 2


def test_a_single_pin_may_exceed_the_cap() -> None:
    pins = EntryPins(Tree(), 10)
    pins.pin("a", object(), 50)
    pins.pin("b", object(), 60)
    assert (len(pins), pins.tokens) == (1, 60)


def test_clear_unlocks_nothing() -> None:
    tree = Tree()
    pins = EntryPins(tree, 100)
    pins.pin("a", object(), 1)
    tree.held.clear()
    pins.clear()
    pins.release("a")
    assert not pins.release_except(())
    assert (len(pins), pins.tokens) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_lock_has_exactly_one_unlock(seed: int) -> None:
    """`Tree` raises if a receipt comes twice or with another node."""
    chance, tree = random.Random(seed), Tree()
    pins = EntryPins(tree, 60, steps=5)
    for _ in range(300):
        pass_steps(pins, chance.randrange(2))
        rid = f"{chance.randrange(12)}"
        act = chance.choice([pins.pin, pins.pin, pins.release, pins.release_by_prefix, None])
        if act == pins.pin:
            pins.pin(rid, object(), chance.randrange(1, 30))
        elif act is None:
            pins.release_except({f"{place}" for place in range(12) if chance.random() < 0.8})
        else:
            act(rid)
        assert len(tree.held) == len(pins)
        assert pins.tokens <= 60
    pins.release_by_prefix("")
    assert tree.held == {}
    assert tree.taken > 50


def a_buffer(heads: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(100, heads, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_gets_its_own_tokens(heads: int, dtype: Any) -> None:
    buffer = a_buffer(heads).to(dtype)
    before = buffer.clone()
    generator = torch.Generator().manual_seed(1)
    slots = torch.randperm(100, generator=generator)
    source, target = slots[:19], slots[19:27]
    kept = torch.stack([torch.randperm(19, generator=generator)[:8].sort().values for _ in range(heads)])
    entry_pins._copy(buffer, kept, source, target)
    for head in range(heads):
        for place in range(8):
            assert torch.equal(buffer[target[place], head], before[source[kept[head, place]], head])
    others = torch.ones(100, dtype=torch.bool)
    others[target] = False
    assert torch.equal(buffer[others], before[others])


CPU = torch.device("cpu")


def mask_state(kept: np.ndarray[Any, Any], report_kept: bool = False) -> ScoringState:
    policy = SpecKv(capacity=KEPT, window=3, selection=KvSelection.DRAFT_MASK)
    return ScoringState(compressed(plan=KvPlan(policy, kv_mask=KvMask(kept), report_kept=report_kept)), None)


def random_mask(layers: int, heads: int) -> np.ndarray[Any, Any]:
    kept = np.zeros((layers, heads, PROMPT_TOKENS), dtype=bool)
    rng = np.random.default_rng(0)
    for layer in range(layers):
        for head in range(heads):
            kept[layer, head, rng.permutation(PROMPT_TOKENS - 1)[:KEPT]] = True
    kept[..., -1] = True
    return kept


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_a_mask_is_what_each_layer_and_head_keeps(shape: tuple[int, int]) -> None:
    mask = random_mask(*shape)
    kept = entry_pins.kept_positions(mask_state(mask), 3, CPU)
    for positions, layer in zip(kept, np.broadcast_to(mask, (3, 2, PROMPT_TOKENS)), strict=True):
        assert positions.expand(2, -1).tolist() == [np.flatnonzero(head[:-1]).tolist() for head in layer]


def test_the_final_token_of_a_mask_is_read_again_and_not_copied() -> None:
    mask = random_mask(1, 1)
    with_final, mask[..., -1] = mask.copy(), False
    (wanted,) = entry_pins.kept_positions(mask_state(with_final), 1, CPU)
    assert torch.equal(entry_pins.kept_positions(mask_state(mask), 1, CPU)[0], wanted)


def test_scores_are_what_each_layer_and_head_keeps() -> None:
    kept = {layer: torch.tensor([[layer, 5], [1, 7]], dtype=torch.int32) for layer in range(2)}
    state = ScoringState(compressed(), SimpleNamespace(kept=kept))  # type: ignore[arg-type]
    assert [each.tolist() for each in entry_pins.kept_positions(state, 2, CPU)] == [[[0, 5], [1, 7]], [[1, 5], [1, 7]]]


def test_what_the_forward_pass_selected_lasts_until_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the reads that are queued here, so the allocator must know of them."""
    kept = {layer: torch.zeros(2, KEPT, dtype=torch.int32) for layer in range(2)}
    held: list[Any] = []
    monkeypatch.setattr(entry_pins, "keep_until_read", held.append)
    entry_pins.kept_positions(ScoringState(compressed(), SimpleNamespace(kept=kept)), 2, CPU)  # type: ignore[arg-type]
    assert [id(each) for each in held] == [id(each) for each in kept.values()]


def test_a_mask_is_copied_to_the_device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Any] = []
    monkeypatch.setattr(entry_pins, "to_device", lambda values, device: copied.append(device) or values)
    entry_pins.kept_positions(mask_state(random_mask(3, 2)), 3, torch.device("meta"))
    assert copied == [torch.device("meta")]


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_each_rank_has_its_own_heads_of_a_mask(shape: tuple[int, int]) -> None:
    mask = random_mask(*shape)
    for rank, group in enumerate(groups_of(2)):
        kept = entry_pins.kept_positions(mask_state(mask), 3, CPU, Ranks(group))
        own = np.broadcast_to(mask, (3, 4, PROMPT_TOKENS))[:, 2 * rank : 2 * rank + 2]
        for positions, layer in zip(kept, own, strict=True):
            assert positions.expand(2, -1).tolist() == [np.flatnonzero(head[:-1]).tolist() for head in layer]


def test_neither_selector_nor_mask_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        entry_pins.kept_positions(ScoringState(compressed(), None), 1, CPU)


class Pool:
    """Three layers of two heads; slots 30.. are free."""

    page_size = 1

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.room: torch.Tensor | None = torch.arange(30, 38, dtype=torch.int32)
        self.freed: list[torch.Tensor] = []
        self.keys = [a_buffer(2, layer) for layer in range(3)]
        self.values = [a_buffer(2, 10 + layer) for layer in range(3)]
        self.inserted: list[Any] = []
        self.node = object()
        self.token_to_kv_pool_allocator = self

    def alloc(self, tokens: int) -> torch.Tensor | None:
        return self.room

    def free(self, slots: torch.Tensor) -> None:
        self.freed.append(slots)

    def get_kvcache(self) -> Pool:
        return self

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.keys[layer]

    def get_value_buffer(self, layer: int) -> torch.Tensor:
        return self.values[layer]

    def insert(self, parameters: Any) -> Any:
        self.inserted.append(parameters)
        return SimpleNamespace(last_device_node=self.node)


@pytest.fixture
def schedulers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One for each of two ranks."""
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    from sglang.srt.mem_cache import common

    monkeypatch.setattr(common, "evict_from_tree_cache", lambda tree, tokens: tree.asked.append(tokens))
    return [a_scheduler(), a_scheduler()]


@pytest.fixture
def scheduler(schedulers: list[Any]) -> Any:
    return schedulers[0]


def a_scheduler() -> Any:
    pool = Pool()
    table = torch.full((2, 60), 99, dtype=torch.int32)
    table[0, : PROMPT_TOKENS + 2] = torch.arange(PROMPT_TOKENS + 2).flip(0) + 4
    return SimpleNamespace(
        tree_cache=pool,
        token_to_kv_pool_allocator=pool,
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        model_config=SimpleNamespace(num_hidden_layers=3),
        pool=pool,
        asked=pool.asked,
    )


@pytest.mark.parametrize(("priority", "inserted_with"), [(None, 0), (7, 7), (-3, -3)])
def test_publishing_copies_every_layer_and_inserts_under_the_entrys_name(
    scheduler: Any, priority: int | None, inserted_with: int
) -> None:
    mask, pool = random_mask(3, 2), scheduler.pool
    state, request = mask_state(mask), Request("s", holds_kv=True)
    request.cache_salt, request.priority = "salt", priority  # type: ignore[attr-defined]
    before = [[buffer.clone() for buffer in buffers] for buffers in (pool.keys, pool.values)]
    copied = entry_pins.copy_selected(scheduler, request, state, ALONE)
    assert copied.slots is not None
    assert (copied.failure, copied.coverage, copied.accepted, copied.kv_mask) == (None, None, (), None)
    assert entry_pins.insert_entry(pool, request, state.caller, copied.slots) is pool.node
    assert scheduler.asked == [KEPT]
    row = scheduler.req_to_token_pool.req_to_token[0]
    for buffers, copies in zip((pool.keys, pool.values), before, strict=True):
        for layer in range(3):
            for head in range(2):
                positions = np.flatnonzero(mask[layer, head, :-1])
                assert torch.equal(buffers[layer][30:38, head], copies[layer][row[positions].long(), head])
            assert torch.equal(buffers[layer][:30], copies[layer][:30])
    (inserted,) = pool.inserted
    assert (inserted.value.dtype, inserted.value.tolist()) == (torch.int64, list(range(30, 38)))
    assert (inserted.key.token_ids, inserted.key.extra_key) == (array("q", range(KEPT)), "entry")
    assert (inserted.key.cache_salt, inserted.priority) == ("salt", inserted_with)


@pytest.mark.parametrize(("page_tokens", "tokens", "in_pages"), [(1, 8, 8), (4, 8, 8), (4, 5, 8), (16, 8, 16)])
def test_new_slots_are_whole_pages(scheduler: Any, page_tokens: int, tokens: int, in_pages: int) -> None:
    pool, given = scheduler.pool, []
    pool.page_size, pool.alloc = page_tokens, lambda count: given.append(count) or torch.arange(32, 32 + count)
    slots = entry_pins.allocate(pool, tokens)
    assert slots is not None
    assert (scheduler.asked, given, slots.tolist()) == ([in_pages], [in_pages], list(range(32, 32 + tokens)))


def selected(layers: int = 3, attention: tuple[float, float] = (1.0, 4.0), **others: Any) -> Any:
    """What a rank selected: the first tokens, in two heads."""
    kept = {layer: torch.arange(KEPT, dtype=torch.int32).expand(2, -1) for layer in range(layers)}
    own = {"kept": kept, "attention": attention, "is_complete": True, "reports_mask": False, "mask": None}
    return SimpleNamespace(**own | others)


def scored(selector: Any, *choices: tuple[float, int], report_kept: bool = False) -> ScoringState:
    plan = KvPlan(SpecKv(KEPT, window=3), lookahead_token_ids=(50, 51, 52), report_kept=report_kept)
    lookahead: Any = SimpleNamespace(tokens=(50, 51, 52), choices=lambda: list(choices))
    return ScoringState(compressed(plan=plan), selector, lookahead=lookahead)


@pytest.mark.parametrize("by_mask", [True, False])
def test_copying_reads_nothing_from_the_device(scheduler: Any, monkeypatch: pytest.MonkeyPatch, by_mask: bool) -> None:
    """Values of the device `meta` cannot be read: reads raise."""
    monkeypatch.setattr(entry_pins, "keep_until_read", lambda _: None)  # it has no streams
    pool, table = scheduler.pool, scheduler.req_to_token_pool
    pool.keys, pool.values = ([each.to("meta") for each in buffers] for buffers in (pool.keys, pool.values))
    pool.room, table.req_to_token = pool.room.to("meta"), table.req_to_token.to("meta")
    kept = {layer: each.to("meta") for layer, each in selected().kept.items()}
    state = mask_state(random_mask(3, 2)) if by_mask else scored(selected(kept=kept))
    copied = entry_pins.copy_selected(scheduler, Request("s", holds_kv=True), state, ALONE)
    assert copied.failure is None
    assert copied.slots is not None and copied.slots.is_meta
    monkeypatch.setattr(entry_pins, "_copy", lambda *tensors: tensors[-1].tolist())
    assert entry_pins.copy_selected(scheduler, Request("s", holds_kv=True), state, ALONE).failure


def test_without_room_nothing_is_copied(scheduler: Any) -> None:
    pool = scheduler.pool
    pool.room = None
    before = [buffer.clone() for buffer in pool.keys]
    copied = entry_pins.copy_selected(scheduler, Request("s", holds_kv=True), mask_state(random_mask(1, 1)), ALONE)
    assert (copied.slots, copied.failure) == (None, None)
    assert all(torch.equal(one, other) for one, other in zip(pool.keys, before, strict=True))


INCOMPLETE = "KV selection did not see every layer; check the attention backend"
FAILURES = {
    "raises": ({"layers": 1}, "copying the selected KV failed: KeyError"),
    "incomplete": ({"is_complete": False}, INCOMPLETE),
}


@pytest.mark.parametrize(("wrong", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failed_copy_frees_its_slots(scheduler: Any, wrong: dict[str, Any], reason: str) -> None:
    pool, request = scheduler.pool, Request("s", holds_kv=True)
    copied = entry_pins.copy_selected(scheduler, request, scored(selected(**wrong)), ALONE)
    assert (copied.slots, copied.failure) == (None, reason)
    assert len(pool.freed) == 1 and torch.equal(pool.freed[0], pool.room)


@pytest.mark.parametrize(("wrong", "reason"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_fails_on_all(
    schedulers: list[Any], wrong: dict[str, Any], reason: str, failing: int
) -> None:
    def copy(rank: int, ranks: Ranks) -> Any:
        selector = selected(**wrong if rank == failing else {})
        return entry_pins.copy_selected(schedulers[rank], Request("s", holds_kv=True), scored(selector), ranks)

    assert [(copied.slots, copied.failure) for copied in on_ranks(copy)] == [(None, reason)] * 2
    # All have evicted and freed the same.
    assert [scheduler.asked for scheduler in schedulers] == [[KEPT]] * 2
    assert [len(scheduler.pool.freed) for scheduler in schedulers] == [1, 1]


def test_all_ranks_know_what_all_heads_kept(schedulers: list[Any]) -> None:
    masks = [KvMask(random_mask(3, 2)), KvMask(random_mask(3, 2)[::-1])]
    held = [(1.0, 4.0), (1.0, 1.0)]
    # The largest logits of each rank's part of the vocabulary; the third row is missing on the second.
    choices = [[(2.0, 50), (1.0, 7), (9.0, 52)], [(1.0, 300), (1.5, 51)]]

    def copy(rank: int, ranks: Ranks) -> Any:
        selector = selected(attention=held[rank], reports_mask=True, mask=masks[rank])
        state = scored(selector, *choices[rank], report_kept=True)
        return entry_pins.copy_selected(schedulers[rank], Request("s", holds_kv=True), state, ranks)

    for copied in on_ranks(copy):
        # Their sums, not the mean of 1/4 and 1.
        assert copied.coverage == pytest.approx(2 / 5)
        assert copied.accepted == (50, 51)
        assert np.array_equal(copied.kv_mask.kept, np.concatenate([mask.kept for mask in masks], axis=1))
        assert copied.slots.tolist() == list(range(30, 38))


def test_a_given_mask_is_reported_whole(schedulers: list[Any]) -> None:
    mask = random_mask(3, 4)
    state = mask_state(mask, report_kept=True)

    def copy(rank: int, ranks: Ranks) -> Any:
        return entry_pins.copy_selected(schedulers[rank], Request("s", holds_kv=True), state, ranks)

    assert [np.array_equal(copied.kv_mask.kept, mask) for copied in on_ranks(copy)] == [True, True]
