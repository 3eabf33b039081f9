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
from presift.target.sglang_plugin.states import ScoringState  # noqa: E402

from .fakes import KEPT, PROMPT_TOKENS, Request, Tree, compressed  # noqa: E402


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(entry_pins.time, "monotonic", lambda: clock.now)
    return clock


def test_a_pin_expires(clock: SimpleNamespace) -> None:
    tree, nodes = Tree(), [object(), object()]
    pins = EntryPins(tree, 100, seconds=60.0)
    pins.pin("a", nodes[0], 30)
    clock.now += 30.0
    pins.pin("b", nodes[1], 30)
    clock.now += 29.9
    assert not pins.release_except("ab")
    assert len(pins) == 2
    clock.now += 0.1
    assert pins.release_except("ab")
    assert list(tree.held.values()) == [nodes[1]]
    clock.now += 30.0
    assert pins.release_except("ab")
    assert (len(pins), tree.held) == (0, {})


def test_pinning_again_renews(clock: SimpleNamespace) -> None:
    pins = EntryPins(Tree(), 100, seconds=60.0)
    pins.pin("a", object(), 30)
    clock.now += 59.0
    pins.pin("a", object(), 30)
    clock.now += 59.0
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
def test_every_lock_has_exactly_one_unlock(clock: SimpleNamespace, seed: int) -> None:
    """`Tree` raises if a receipt comes twice or with another node."""
    chance, tree = random.Random(seed), Tree()
    pins = EntryPins(tree, 60, seconds=5.0)
    for _ in range(300):
        clock.now += chance.random()
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


def mask_state(kept: np.ndarray[Any, Any]) -> ScoringState:
    policy = SpecKv(capacity=KEPT, window=3, selection=KvSelection.DRAFT_MASK)
    return ScoringState(compressed(plan=KvPlan(policy, kv_mask=KvMask(kept))), None)


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


def test_neither_selector_nor_mask_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        entry_pins.kept_positions(ScoringState(compressed(), None), 1, CPU)


class Pool:
    """Three layers of two heads; slots 30.. are free."""

    page_size = 1

    def __init__(self) -> None:
        self.keys = [a_buffer(2, layer) for layer in range(3)]
        self.values = [a_buffer(2, 10 + layer) for layer in range(3)]
        self.inserted: list[Any] = []
        self.node = object()
        self.token_to_kv_pool_allocator = self

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
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    from sglang.srt.mem_cache import common

    pool = Pool()
    asked: list[int] = []
    pool.free = torch.arange(30, 38, dtype=torch.int32)  # type: ignore[attr-defined]
    pool.alloc = lambda tokens: pool.free  # type: ignore[attr-defined]
    monkeypatch.setattr(common, "evict_from_tree_cache", lambda tree, tokens: asked.append(tokens))
    table = torch.full((2, 60), 99, dtype=torch.int32)
    table[0, : PROMPT_TOKENS + 2] = torch.arange(PROMPT_TOKENS + 2).flip(0) + 4
    return SimpleNamespace(
        tree_cache=pool,
        token_to_kv_pool_allocator=pool,
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        model_config=SimpleNamespace(num_hidden_layers=3),
        pool=pool,
        asked=asked,
    )


@pytest.mark.parametrize(("priority", "inserted_with"), [(None, 0), (7, 7), (-3, -3)])
def test_publishing_copies_every_layer_and_inserts_under_the_entrys_name(
    scheduler: Any, priority: int | None, inserted_with: int
) -> None:
    mask, pool = random_mask(3, 2), scheduler.pool
    state, request = mask_state(mask), Request("s", holds_kv=True)
    request.cache_salt, request.priority = "salt", priority  # type: ignore[attr-defined]
    before = [[buffer.clone() for buffer in buffers] for buffers in (pool.keys, pool.values)]
    assert entry_pins.publish(scheduler, request, state) is pool.node
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


def test_a_failed_publish_frees_its_slots(scheduler: Any) -> None:
    pool, freed = scheduler.pool, []
    pool.free, slots = freed.append, pool.free
    pool.alloc = lambda tokens: slots
    broken = ScoringState(compressed(), SimpleNamespace(kept={0: torch.zeros(2, KEPT, dtype=torch.int32)}))  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        entry_pins.publish(scheduler, Request("s", holds_kv=True), broken)
    assert len(freed) == 1 and torch.equal(freed[0], slots)
    assert pool.inserted == []


def test_without_room_nothing_is_published(scheduler: Any) -> None:
    pool = scheduler.pool
    pool.free = None
    before = [buffer.clone() for buffer in pool.keys]
    assert entry_pins.publish(scheduler, Request("s", holds_kv=True), mask_state(random_mask(1, 1))) is None
    assert pool.inserted == []
    assert all(torch.equal(one, other) for one, other in zip(pool.keys, before, strict=True))
