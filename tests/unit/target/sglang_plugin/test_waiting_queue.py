"""The queue is walked when it must be, and what the plugin takes out of it is its own."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from presift.target.sglang_plugin.waiting_queue import QueuedIds, withdraw

from .fakes import Queue, Request, Scheduler


def test_the_ids_are_those_of_the_first_question() -> None:
    queue = Queue([Request("a"), Request("b")])
    queued = QueuedIds(queue)
    queue.append(Request("c"))
    assert queue.walks == 0
    assert [name in queued for name in "abcd"] == [True, True, True, False]
    queue.clear()
    assert "a" in queued
    assert queue.walks == 1


@pytest.mark.parametrize("where", ["queue", "chunked", "running"])
def test_a_withdrawn_request_leaves_the_queue_or_ends_with_its_chunk(where: str) -> None:
    """Others stay, also those of the same id."""
    own, other, alike = Request("own"), Request("other"), Request("own")
    scheduler = Scheduler(waiting_queue=[other, *([own] if where == "queue" else []), alike])
    scheduler.chunked_req = own if where == "chunked" else other
    queue = scheduler.waiting_queue
    withdraw(scheduler, [own])
    assert queue is scheduler.waiting_queue
    assert queue == [other, alike]
    assert scheduler._pending_chunked_abort_req is (own if where == "chunked" else None)


def test_nothing_withdrawn_reads_nothing() -> None:
    scheduler = Scheduler(waiting_queue=Queue([Request("a")]))
    withdraw(scheduler, [])
    assert scheduler.waiting_queue.walks == 0
