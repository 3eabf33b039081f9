"""Replacing the KV slots of a request that decodes: its row, its locks, what is freed, and the batch's lengths."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.models.torchvision_ops import declare_missing  # noqa: E402 - the plugin needs torch
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
        self.scheduler: Any = SimpleNamespace(tree_cache=tree, req_to_token_pool=pool)
        kv = SimpleNamespace(req_pool_idx=1, cache_protected_len=4, kv_committed_len=10, kv_allocated_len=10)
        lock = {"lock": "node", "prefix_len": 8} if locks else {"lock_receipt": "receipt"}
        self.request: Any = SimpleNamespace(kv=kv, last_node="node", skip_radix_cache_insert=False, **lock)
        self.batch: Any = SimpleNamespace(reqs=["other", self.request], seq_lens_sum=17)
        self.before = {name: torch.tensor([7, 10]) for name in LENGTHS}
        vars(self.batch).update(self.before)

    def _free(self, kv: Any, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            self.freed += self.rows[kv.req_pool_idx, start:end].tolist()

    def replace(self, head: int, slots: list[int]) -> None:
        replace_head(self.scheduler, self.batch, 1, head, torch.tensor(slots))


@pytest.mark.parametrize("locks", [False, True])
def test_the_head_is_replaced_and_freed_and_the_tail_stays(locks: bool) -> None:
    rig = Rig(locks)
    rig.replace(8, [100, 101, 102])

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
