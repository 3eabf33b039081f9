"""Which request is served next: by work, tenant by tenant."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core.fair_queue import MAX_IDLE, FairQueue


@dataclass(eq=False)
class Waiter:
    tenant: str
    work_tokens: int = 100
    name: str = ""


def one(_):
    return 1


def order(queue, ends=True):
    found = []
    while len(queue):
        waiter = queue.pop()
        found.append(waiter)
        if ends:
            queue.finish(waiter)
    return found


def filled(*waiters):
    queue = FairQueue()
    for waiter in waiters:
        queue.push(waiter)
    return queue


def test_one_tenant_is_served_in_order():
    waiters = [Waiter("a", 10 * number) for number in range(1, 6)]
    assert order(filled(*waiters)) == waiters


def test_a_flood_delays_a_new_tenant_only_by_what_is_being_served():
    queue = filled(*(Waiter("flood") for _ in range(500)))
    served = [queue.pop() for _ in range(10)]
    single = Waiter("single", 5_000)
    queue.push(single)
    assert queue.pop() is single
    assert {each.tenant for each in served} == {"flood"}


def test_shares_are_by_work_not_by_number():
    queue = filled(*(Waiter("long", 300) for _ in range(10)), *(Waiter("short", 100) for _ in range(30)))
    first = [each.tenant for each in order(queue, ends=False)][:20]
    assert first.count("long") == 5 and first.count("short") == 15


def test_an_idle_tenant_saves_nothing_up():
    queue = filled(*(Waiter("busy") for _ in range(50)))
    for _ in range(20):
        queue.pop()
    for _ in range(20):
        queue.push(Waiter("idle"))
    assert sorted(each.tenant for each in (queue.pop() for _ in range(10))) == ["busy"] * 5 + ["idle"] * 5


def test_a_large_request_is_not_next_each_time_the_one_before_has_ended():
    """One place: a tenant that sends its next request when the last has ended has no request between the two."""
    queue, served = filled(*(Waiter("short", 1000) for _ in range(2000))), {"long": 0, "short": 0}
    queue.push(Waiter("long", 100_000))
    for _ in range(1000):
        waiter = queue.pop()
        served[waiter.tenant] += waiter.work_tokens
        queue.finish(waiter)
        if waiter.tenant == "long":
            queue.push(Waiter("long", 100_000))
    assert served["long"] <= served["short"] + 200_000


def test_virtual_times_of_idle_tenants_are_bounded_and_end_with_the_work():
    queue = filled(Waiter("busy", 1), Waiter("busy", 1))
    busy = queue.pop()
    for number in range(MAX_IDLE + 10):
        queue.push(Waiter(f"t{number}"))
        queue.finish(queue.pop())
    assert len(queue._idle_times) == MAX_IDLE and queue.tenants == 1
    queue.finish(busy)
    order(queue)
    assert not queue._idle_times and queue.tenants == 0


def test_tenants_without_a_request_are_forgotten():
    queue = FairQueue()
    for number in range(1000):
        queue.push(Waiter(f"t{number}"))
    left = Waiter("left")
    queue.push(left)
    queue.remove(left)
    assert queue.tenants == 1000
    order(queue)
    assert queue.tenants == len(queue) == 0


def test_tenants_being_served_are_not_waiting():
    queue = filled(Waiter("one"), Waiter("one"), Waiter("other"))
    assert queue.waiting_tenants == 2
    queue.pop()
    queue.pop()
    assert (queue.waiting_tenants, queue.tenants) == (1, 2)


def test_a_virtual_time_lasts_while_a_request_is_served():
    queue = filled(Waiter("a", 1000))
    running = queue.pop()
    assert queue.tenants == 1
    queue.push(Waiter("a"))
    other = Waiter("b")
    queue.push(other)
    assert queue.pop() is other
    queue.finish(running)
    assert [each.tenant for each in order(queue)] == ["a"]


def test_the_last_of_the_largest_by_any_measure():
    waiters = [Waiter("many", 1, "m1"), Waiter("many", 1, "m2"), Waiter("heavy", 9, "h")]
    queue = filled(*waiters)
    assert queue.last_of_largest(one).name == "m2"
    assert queue.last_of_largest(lambda each: each.work_tokens).name == "h"
    assert (queue.share("many", one), queue.share("nobody", one)) == (2, 0)


def test_an_empty_queue_raises():
    queue = FairQueue()
    with pytest.raises(IndexError):
        queue.pop()
    with pytest.raises(ValueError):
        queue.last_of_largest(one)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 1000)), max_size=60))
def test_all_are_served_once_and_no_tenant_gets_ahead_of_a_waiting_one_by_more_than_a_request(wants):
    waiters = [Waiter(tenant, work) for tenant, work in wants]
    queue, got = filled(*waiters), dict.fromkeys("abcd", 0)
    waiting = [waiter.tenant for waiter in waiters]
    largest = max((work for _, work in wants), default=0)
    found = []
    while len(queue):
        waiter = queue.pop()
        found.append(waiter)
        waiting.remove(waiter.tenant)
        got[waiter.tenant] += waiter.work_tokens
        for other in set(waiting):
            assert got[waiter.tenant] - got[other] <= 2 * largest
    assert sorted(map(id, found)) == sorted(map(id, waiters))
