"""What ranks exchange is the same on all of them; a single rank exchanges nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from presift.target.sglang_plugin.ranks import ALONE, Ranks

from .fakes import groups_of, on_ranks


def test_all_ranks_get_the_values_in_their_order() -> None:
    assert on_ranks(lambda rank, ranks: ranks.gather({"of": rank}), size=3) == [[{"of": 0}, {"of": 1}, {"of": 2}]] * 3
    assert on_ranks(lambda rank, ranks: ranks.are_several) == [True, True]


def test_a_single_rank_has_no_group_to_ask() -> None:
    for ranks in (ALONE, Ranks(SimpleNamespace(world_size=1))):
        value = object()
        assert ranks.gather(value) == [value]
        assert (ranks.are_several, ranks.own_heads(8)) == (False, slice(None))


@pytest.mark.parametrize(("size", "heads", "shares"), [(2, 2, [[0], [1]]), (2, 8, [[0, 1, 2, 3], [4, 5, 6, 7]])])
def test_the_heads_are_divided_in_order(size: int, heads: int, shares: list[list[int]]) -> None:
    ranks = [Ranks(group) for group in groups_of(size)]
    assert [list(range(heads))[each.own_heads(heads)] for each in ranks] == shares
    # One for all heads of the model.
    assert [each.own_heads(1) for each in ranks] == [slice(None)] * size


@pytest.mark.parametrize(("nodes", "are_several"), [(1, True), (2, False)])
def test_ranks_of_several_nodes_do_not_wait_for_each_other(nodes: int, are_several: bool) -> None:
    scheduler: Any = SimpleNamespace(tp_group=groups_of(2)[0], server_args=SimpleNamespace(nnodes=nodes))
    assert Ranks.of(scheduler).are_several is are_several
