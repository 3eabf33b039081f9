"""Whose turn it is: by work, tenant by tenant."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.admission.fair_queue import FairQueue


@dataclass(eq=False)
class Ticket:
    tenant: str
    work_tokens: int = 100
    name: str = ""


def one(_):
    return 1


def order(queue, ends=True):
    found = []
    while len(queue):
        ticket = queue.pop()
        found.append(ticket)
        if ends:
            queue.served(ticket)
    return found


def filled(*tickets):
    queue = FairQueue()
    for ticket in tickets:
        queue.push(ticket)
    return queue


def test_one_tenant_is_served_in_order():
    tickets = [Ticket("a", 10 * number) for number in range(1, 6)]
    assert order(filled(*tickets)) == tickets


def test_a_flood_stands_before_a_newcomer_only_for_what_is_served():
    queue = filled(*(Ticket("flood") for _ in range(500)))
    served = [queue.pop() for _ in range(10)]
    single = Ticket("single", 5_000)
    queue.push(single)
    assert queue.pop() is single
    assert {each.tenant for each in served} == {"flood"}


def test_turns_are_by_work_not_by_number():
    queue = filled(*(Ticket("long", 300) for _ in range(10)), *(Ticket("short", 100) for _ in range(30)))
    first = [each.tenant for each in order(queue, ends=False)][:20]
    assert first.count("long") == 5 and first.count("short") == 15


def test_who_was_idle_has_saved_nothing():
    queue = filled(*(Ticket("busy") for _ in range(50)))
    for _ in range(20):
        queue.pop()
    for _ in range(20):
        queue.push(Ticket("idle"))
    assert sorted(each.tenant for each in (queue.pop() for _ in range(10))) == ["busy"] * 5 + ["idle"] * 5


def test_tenants_without_a_request_are_forgotten():
    queue = FairQueue()
    for number in range(1000):
        queue.push(Ticket(f"t{number}"))
    left = Ticket("left")
    queue.push(left)
    queue.remove(left)
    assert queue.tenants == 1000
    order(queue)
    assert queue.tenants == len(queue) == 0


def test_tenants_that_are_only_served_do_not_wait():
    queue = filled(Ticket("one"), Ticket("one"), Ticket("other"))
    assert queue.waiting_tenants == 2
    queue.pop()
    queue.pop()
    assert (queue.waiting_tenants, queue.tenants) == (1, 2)


def test_a_debt_lasts_as_long_as_a_request_is_served():
    queue = filled(Ticket("a", 1000))
    running = queue.pop()
    assert queue.tenants == 1
    queue.push(Ticket("a"))
    other = Ticket("b")
    queue.push(other)
    assert queue.pop() is other
    queue.served(running)
    assert [each.tenant for each in order(queue)] == ["a"]


def test_the_last_of_the_largest_is_named_by_any_measure():
    tickets = [Ticket("many", 1, "m1"), Ticket("many", 1, "m2"), Ticket("heavy", 9, "h")]
    queue = filled(*tickets)
    assert queue.last_of_largest(one).name == "m2"
    assert queue.last_of_largest(lambda each: each.work_tokens).name == "h"
    assert (queue.share("many", one), queue.share("nobody", one)) == (2, 0)


def test_nothing_comes_of_nothing():
    queue = FairQueue()
    with pytest.raises(IndexError):
        queue.pop()
    with pytest.raises(ValueError):
        queue.last_of_largest(one)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 1000)), max_size=60))
def test_all_are_served_once_and_no_tenant_gets_ahead_of_a_waiting_one_by_more_than_a_request(wants):
    tickets = [Ticket(tenant, work) for tenant, work in wants]
    queue, got = filled(*tickets), dict.fromkeys("abcd", 0)
    waiting = [ticket.tenant for ticket in tickets]
    largest = max((work for _, work in wants), default=0)
    found = []
    while len(queue):
        ticket = queue.pop()
        found.append(ticket)
        waiting.remove(ticket.tenant)
        got[ticket.tenant] += ticket.work_tokens
        for other in set(waiting):
            assert got[ticket.tenant] - got[other] <= 2 * largest
    assert sorted(map(id, found)) == sorted(map(id, tickets))
