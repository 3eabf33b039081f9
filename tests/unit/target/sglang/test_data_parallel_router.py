"""A prompt and what continues it go to one replica; other prompts go to the idlest."""

from contextlib import ExitStack

import numpy as np
import pytest

from presift.target.sglang import data_parallel_router
from presift.target.sglang.data_parallel_router import DataParallelRouter


def prompt(seed, tokens=1000):
    return np.random.default_rng(seed).integers(0, 512, tokens).astype(np.uint32)


def choose(choice, token_ids, salt=""):
    with choice.chosen(token_ids, salt) as replica:
        return replica


@pytest.fixture
def busy():
    """A choice of three replicas; the first one has a request, so that the idlest is the second."""
    choice = DataParallelRouter(3)
    with choice.chosen(prompt(0), ""):
        yield choice


def test_running_requests_are_spread():
    choice = DataParallelRouter(3)
    with ExitStack() as running:
        replicas = [running.enter_context(choice.chosen(prompt(seed), "")) for seed in range(6)]
    assert sorted(replicas) == [0, 0, 1, 1, 2, 2]
    assert choose(choice, prompt(9)) == 0


@pytest.mark.parametrize("tokens", [1, 100, 256, 1000])
def test_the_answer_follows_the_reading_ahead(busy, tokens):
    ids = prompt(1, tokens)
    assert choose(busy, ids) == 1
    with busy.chosen(prompt(2), ""):  # now the third is idlest
        assert choose(busy, ids) == 1
        assert choose(busy, ids, salt="other") == 2


@pytest.mark.parametrize(("more", "follows"), [(24, True), (500, True), (1100, False)])
def test_a_later_turn_follows_if_most_of_it_was_read(busy, more, follows):
    ids = prompt(1)
    assert choose(busy, ids) == 1
    with busy.chosen(prompt(2), ""):
        assert (choose(busy, np.concatenate([ids, prompt(3, more)])) == 1) is follows


def test_a_common_beginning_brings_nothing_to_one_replica(busy):
    common = prompt(1, 512)
    with ExitStack() as running:
        replicas = [
            running.enter_context(busy.chosen(np.concatenate([common, prompt(seed)]), "")) for seed in range(2, 7)
        ]
    assert sorted(replicas) == [0, 1, 1, 2, 2]


def test_a_replica_that_is_much_busier_is_passed_over(busy):
    ids = prompt(1)
    with ExitStack() as running:
        replicas = [running.enter_context(busy.chosen(ids, "")) for _ in range(7)]
    assert replicas[:5] == [1] * 5
    # What it has read in the meantime, it has too.
    assert replicas[5:] == [2, 2]


def test_a_request_that_fails_is_not_counted_any_more():
    choice = DataParallelRouter(2)
    with pytest.raises(ValueError), choice.chosen(prompt(1), ""):
        raise ValueError
    assert choice._running == [0, 0]


def test_a_single_replica_is_not_chosen():
    assert choose(DataParallelRouter(1), prompt(1)) is None


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(data_parallel_router, "_REMEMBERED", 8)
    choice = DataParallelRouter(2)
    for seed in range(10):
        choose(choice, prompt(seed))
    assert len(choice._readers) == 8
