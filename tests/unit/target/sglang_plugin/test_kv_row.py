"""Replacing the KV slots of a request that decodes: its row, its locks, what is freed, and the batch's lengths."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.models.torchvision_ops import declare_missing  # noqa: E402 - the plugin needs torch
from presift.target.sglang_plugin import kv_row  # noqa: E402
from presift.target.sglang_plugin.kv_row import can_replace_head, replace_head  # noqa: E402

LENGTHS = ("seq_lens", "seq_lens_cpu", "orig_seq_lens")


class Rig:
    """Two requests in a batch; the second has 10 slots, 30 to 39, of which the tree owns the first 4.

    `locks`: they are those of SGLang 0.5.22, where a request has a lock, and not of 0.5.21, where it has a receipt.
    """

    def __init__(self, locks: bool = False) -> None:
        if find_spec("sglang") is None:
            pytest.skip("needs SGLang")
        declare_missing()
        self.rows = torch.arange(60, dtype=torch.int32).view(2, 30)
        self.freed: list[int] = []
        self.unlocked: list[Any] = []
        tree = SimpleNamespace(free_kv_row=self._free)
        if locks:
            tree.unlock = self.unlocked.append
        else:
            tree.unpin = lambda request: self.unlocked.append(request.last_node)
        pool = SimpleNamespace(req_to_token=self.rows, write=self.rows.__setitem__)
        self.scheduler: Any = SimpleNamespace(tree_cache=tree, req_to_token_pool=pool, page_size=1)
        kv = SimpleNamespace(req_pool_idx=1, cache_protected_len=4, kv_committed_len=10, kv_allocated_len=10)
        lock = {"lock": "node", "prefix_len": 8} if locks else {"lock_receipt": "receipt"}
        self.request: Any = SimpleNamespace(kv=kv, last_node="node", skip_radix_cache_insert=False, **lock)
        self.batch: Any = SimpleNamespace(reqs=["other", self.request], seq_lens_sum=17)
        self.before = {name: torch.tensor([7, 10]) for name in LENGTHS}
        vars(self.batch).update(self.before)

    def _free(self, kv: Any, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            self.freed += self.rows[kv.req_pool_idx, start:end].tolist()

    def replace(self, head: int, slots: list[int]) -> bool:
        return replace_head(self.scheduler, self.batch, 1, head, torch.tensor(slots))


@pytest.mark.parametrize("locks", [False, True])
def test_the_head_is_replaced_and_freed_and_the_tail_stays(locks: bool) -> None:
    rig = Rig(locks)
    assert rig.replace(8, [100, 101, 102])

    assert rig.rows[1, :5].tolist() == [100, 101, 102, 38, 39]
    assert rig.rows[0].tolist() == list(range(30))
    # The tree's four are given back by unlocking them.
    assert (rig.freed, rig.unlocked) == ([34, 35, 36, 37], ["node"])
    kv = rig.request.kv
    assert (kv.cache_protected_len, kv.kv_committed_len, kv.kv_allocated_len) == (0, 5, 5)
    assert (rig.request.last_node, rig.request.skip_radix_cache_insert) == (None, True)
    if locks:
        assert (rig.request.lock, rig.request.prefix_len) == (None, 5)
    else:
        assert rig.request.lock_receipt != "receipt"
        assert rig.request.prefix_indices.tolist() == [100, 101, 102, 38, 39]


def test_the_lengths_of_the_batch_are_new_tensors() -> None:
    rig = Rig()
    rig.replace(8, [100, 101, 102])
    for name in LENGTHS:
        assert getattr(rig.batch, name).tolist() == [7, 5]
        assert rig.before[name].tolist() == [7, 10]
    assert rig.batch.seq_lens_sum is None


def test_a_renewal_of_the_same_length_changes_no_length() -> None:
    rig = Rig()
    rig.replace(4, [100, 101, 102, 103])
    assert rig.rows[1, :10].tolist() == [100, 101, 102, 103, *range(34, 40)]
    assert rig.freed == []
    assert all(getattr(rig.batch, name) is rig.before[name] for name in LENGTHS)


def test_a_whole_row() -> None:
    rig = Rig()
    rig.replace(10, [100])
    assert (rig.rows[1, 0].item(), rig.request.kv.kv_committed_len, rig.freed) == (100, 1, list(range(34, 40)))


@pytest.mark.parametrize(("head", "can"), [(3, False), (4, True), (10, True), (11, False)])
def test_no_slot_of_the_tree_may_stay_in_the_tail(head: int, can: bool) -> None:
    request = Rig().request
    assert can_replace_head(request, head) is can
    # SGLang reserved slots for later steps.
    request.kv.kv_allocated_len = 11
    assert not can_replace_head(request, head)


class PagedRig(Rig):
    """The same with pages of 4 tokens and a pool of two layers, in whose slot i lies the number i. Slots from 200 on
    are given to whoever asks, if there are any. A step in flight writes 7777 to the last slot of the row.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, has_room: bool = True) -> None:
        super().__init__()
        self.buffers = [torch.arange(240.0).view(-1, 1, 1).repeat(1, 2, 3) for _ in range(4)]
        kv_pool = SimpleNamespace(
            get_key_buffer=lambda layer: self.buffers[layer], get_value_buffer=lambda layer: self.buffers[2 + layer]
        )
        vars(self.scheduler).update(
            page_size=4,
            forward_stream="forward",
            token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: kv_pool),
            model_config=SimpleNamespace(num_hidden_layers=2),
        )
        self.asked: list[int] = []
        self.has_room = has_room
        monkeypatch.setattr(kv_row, "allocate", self._allocate)
        monkeypatch.setattr(kv_row, "wait_for_stream", self._run_step)

    def _allocate(self, tree: Any, tokens: int) -> Any:
        assert tree is self.scheduler.tree_cache
        self.asked.append(tokens)
        return torch.arange(200, 200 + tokens) if self.has_room else None

    def _run_step(self, stream: str, device: Any) -> None:
        assert (stream, device.type) == ("forward", "cpu")
        for buffer in self.buffers:
            buffer[39] = 7777.0


@pytest.mark.parametrize(
    ("head", "slots", "row", "asked"),
    [
        # What follows fits the new last page, fills it, or needs more.
        (8, [100], [100, 101, 102], []),
        (8, [100, 101], [100, 101, 102, 103], []),
        (7, [100, 101, 102], [100, 101, 102, 103, 200, 201], [2]),
        (5, [100, 101, 102, 103], [100, 101, 102, 103, 200, 201, 202, 203, 204], [5]),
        (10, [100, 101], [100, 101], []),
        # A renewal that changes no length.
        (6, list(range(100, 106)), [*range(100, 108), 200, 201], [2]),
    ],
    ids=str,
)
def test_with_pages_what_follows_moves_too(
    monkeypatch: pytest.MonkeyPatch, head: int, slots: list[int], row: list[int], asked: list[int]
) -> None:
    rig = PagedRig(monkeypatch)
    assert rig.replace(head, slots)

    assert (rig.rows[1, : len(row)].tolist(), rig.asked) == (row, asked)
    assert [slot % 4 for slot in row] == [place % 4 for place in range(len(row))]
    # Whole pages: all that is not the tree's.
    assert (rig.freed, rig.unlocked) == (list(range(34, 40)), ["node"])
    kv = rig.request.kv
    assert (kv.cache_protected_len, kv.kv_committed_len, kv.kv_allocated_len) == (0, len(row), len(row))
    assert all(getattr(rig.batch, name).tolist() == [7, len(row)] for name in LENGTHS)
    moved = row[len(slots) :]
    written = [float(slot) for slot in range(30 + head, 39)] + [7777.0] * (head < 10)
    for buffer in rig.buffers:
        assert buffer[moved].tolist() == [[[value] * 3] * 2 for value in written]
        others = [slot for slot in range(240) if slot not in (*moved, 39)]
        assert buffer[others, 0, 0].tolist() == others


def test_without_room_for_what_follows_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = PagedRig(monkeypatch, has_room=False)
    assert not rig.replace(7, [100, 101, 102])

    assert rig.rows[1, :10].tolist() == list(range(30, 40))
    assert (rig.freed, rig.unlocked) == ([], [])
    kv = rig.request.kv
    assert (kv.cache_protected_len, kv.kv_committed_len, kv.kv_allocated_len) == (4, 10, 10)
    assert not rig.request.skip_radix_cache_insert
    assert all(getattr(rig.batch, name) is rig.before[name] for name in LENGTHS)
    assert all(buffer[:, 0, 0].tolist() == list(range(240)) for buffer in rig.buffers)


@pytest.mark.parametrize("head", [8, 5])
@pytest.mark.parametrize("has_pages", [False, True])
def test_replacing_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch, has_pages: bool, head: int) -> None:
    """Values of the device `meta` cannot be read: reads raise."""
    rig = PagedRig(monkeypatch) if has_pages else Rig()
    rig.buffers = [each.to("meta") for each in getattr(rig, "buffers", [])]  # type: ignore[attr-defined]
    pool, rows, freed = rig.scheduler.req_to_token_pool, rig.rows.to("meta"), []
    pool.req_to_token, pool.write = rows, rows.__setitem__
    rig.scheduler.tree_cache.free_kv_row = lambda kv, ranges: freed.append(ranges)
    monkeypatch.setattr(kv_row, "allocate", lambda tree, tokens: torch.empty(tokens, dtype=torch.int64, device="meta"))
    monkeypatch.setattr(kv_row, "wait_for_stream", lambda stream, device: None)
    for name in LENGTHS[::2]:
        setattr(rig.batch, name, getattr(rig.batch, name).to("meta"))
    slots = torch.empty(4, dtype=torch.int64, device="meta")
    assert replace_head(rig.scheduler, rig.batch, 1, head, slots)
    assert rig.request.kv.kv_committed_len == 14 - head
    assert len(freed) == 1
