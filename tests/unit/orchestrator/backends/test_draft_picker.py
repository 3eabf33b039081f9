"""Which draft reads a prompt: the one with the fewest tokens to read."""

from dataclasses import dataclass

import numpy as np
import pytest

from presift.orchestrator.backends.draft_picker import DraftPicker
from presift.orchestrator.estimation.prefix_index import PrefixIndex


@dataclass(frozen=True)
class Draft:
    address: str
    in_flight: int = 0


A, B = Draft("a:1"), Draft("b:1")


@pytest.fixture
def picker():
    return DraftPicker(PrefixIndex())


def prompt(tokens, seed=0):
    return np.random.default_rng(seed).integers(1, 900, tokens).astype(np.uint32)


def test_without_knowledge_the_first_is_chosen(picker):
    assert picker.best([A, B], prompt(200), "") == (A, 200)
    assert picker.best([B, A], prompt(200), "") == (B, 200)


def test_a_longer_turn_goes_to_the_draft_that_read_the_earlier_one(picker):
    turn = prompt(1000)
    picker.record(B, turn[:640], "", 0)
    assert picker.best([A, B], turn, "") == (B, 360)


def test_another_tenants_reading_does_not_count(picker):
    picker.record(B, prompt(640), "tenant", 0)
    assert picker.best([A, B], prompt(640), "") == (A, 640)


def test_a_draft_that_evicted_the_prompt_is_not_preferred(picker):
    turn = prompt(1000)
    picker.record(B, turn[:640], "", 0)
    picker.record(B, turn, "", 0)  # the draft had kept nothing of it
    picker.record(A, turn[:640], "", 0)
    assert picker.best([B, A], turn, "") == (A, 360)


def test_the_draft_that_holds_it_is_left_if_its_queue_is_longer_than_what_it_saves(picker):
    turn = prompt(1000)
    picker.record(B, turn[:640], "", 0)
    with picker.reading(B, 600):
        assert picker.best([A, B], turn, "")[0] == B  # 600 + 360 < 1000
        with picker.reading(B, 60):
            assert picker.best([A, B], turn, "")[0] == A
    assert picker.best([A, B], turn, "")[0] == B


def test_a_failed_call_waits_no_longer(picker):
    with pytest.raises(TimeoutError), picker.reading(A, 5000):
        raise TimeoutError
    assert picker.best([A, B], prompt(100), "")[0] == A


def test_a_prompt_that_is_held_whole_still_counts(picker):
    picker.record(A, prompt(640), "", 0)
    with picker.reading(A, 1):
        assert picker.best([A], prompt(640), "") == (A, 1)
