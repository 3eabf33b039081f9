"""Choosing by key and by load."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.rpc.pool.balancer import ReplicaRing, in_order, least_loaded, within_bound

ADDRESSES = [f"10.0.0.{number}:50053" for number in range(8)]
KEYS = [f"key {number}" for number in range(2000)]


@dataclass(frozen=True)
class Fake:
    address: str
    in_flight: int = 0


def test_every_key_has_an_order_of_all():
    ring = ReplicaRing(ADDRESSES)
    assert all(sorted(ring.order(key)) == ADDRESSES for key in KEYS[:50])
    assert ReplicaRing(()).order("key") == []


def test_the_order_is_that_of_every_process():
    code = (
        "from presift.rpc.pool.balancer import ReplicaRing; print(ReplicaRing(['b:1', 'a:1', 'c:1']).order('document'))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed,
            "PYTHONPATH": ":".join(sys.path)}
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert seen == {f"{ReplicaRing(['a:1', 'b:1', 'c:1']).order('document')}\n"}


def test_a_removed_replica_moves_only_its_share():
    before, after = ReplicaRing(ADDRESSES), ReplicaRing(ADDRESSES[1:])
    moved = [key for key in KEYS if before.order(key)[0] != after.order(key)[0]]
    assert all(before.order(key)[0] == ADDRESSES[0] for key in moved)
    # What it had goes to whoever was second, and is shared by many.
    assert all(after.order(key)[0] == before.order(key)[1] for key in moved)
    assert len({after.order(key)[0] for key in moved}) > 4


def test_every_replica_has_a_fair_share():
    ring = ReplicaRing(ADDRESSES)
    share = Counter(ring.order(key)[0] for key in KEYS)
    assert len(share) == 8 and max(share.values()) < 2 * len(KEYS) / 8


def test_least_loaded_and_of_equals_the_first():
    a, b, c = Fake("a", 2), Fake("b", 1), Fake("c", 1)
    assert least_loaded(in_order([a, b, c], ["c", "b", "a"])) is c
    with pytest.raises(ValueError, match="empty"):
        least_loaded([])


def test_those_without_a_place_are_last():
    a, b = Fake("a"), Fake("b")
    assert in_order([a, b], ["b"]) == [b, a]


def test_a_hot_one_spreads():
    idle = [Fake("a"), Fake("b")]
    assert within_bound(idle) == idle
    assert within_bound([Fake("a", 1), Fake("b")]) == [Fake("a", 1), Fake("b")]
    assert within_bound([Fake("a", 2), Fake("b")]) == [Fake("a", 2), Fake("b")]
    assert within_bound([Fake("a", 3), Fake("b")]) == [Fake("b")]
    assert within_bound([Fake("a", 2), Fake("b"), Fake("c")]) == [Fake("b"), Fake("c")]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_no_replica_exceeds_the_bound_and_one_takes_the_request(loads):
    replicas = [Fake(str(number), load) for number, load in enumerate(loads)]
    found = within_bound(replicas)
    limit = ceil(1.25 * sum(loads) / len(loads))
    assert found and all(each.in_flight <= limit for each in found)
