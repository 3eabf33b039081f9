"""The selection keeps as many of the answers' tokens and KV pairs as when its floors were measured."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from presift.core import selection
from presift.target.sglang_plugin import kv_selector
from presift_demo_models.fetch import ensure_model

# The benchmarks are scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import selection_recall

pytestmark = pytest.mark.models

WAYS = tuple(selection_recall.CAPACITIES)
POOL, POOLED, SHIFT = selection.pool, kv_selector._pooled, 40


@pytest.fixture(scope="module")
def measured(presift_home):
    """Recall as it is, and with a fault that a change could bring: the peaks are found 40 tokens away."""
    folder = ensure_model("smollm2-135m-instruct", presift_home, print)
    as_it_is, worse = selection_recall.Recalls(), selection_recall.Recalls()
    for reading in selection_recall.readings(folder):
        as_it_is.add(reading.seed, reading.recall())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "pool", lambda *arguments: np.roll(POOL(*arguments), SHIFT))
            patch.setattr(kv_selector, "_pooled", lambda *arguments: torch.roll(POOLED(*arguments), SHIFT, 1))
            worse.add(reading.seed, reading.recall())
    return as_it_is, worse


@pytest.fixture(scope="module")
def floors():
    assert selection_recall.FLOORS.exists(), f"{selection_recall.FLOORS} is missing: {selection_recall.COMMAND}"
    return json.loads(selection_recall.FLOORS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("way", WAYS)
def test_recall_is_not_below_its_floor(measured, floors, way):
    assert measured[0].means[way] >= floors["floors"][way], measured[0].by_seed[way]


@pytest.mark.parametrize("way", WAYS)
def test_a_worse_selection_is_below_it(measured, floors, way):
    assert measured[1].means[way] < floors["floors"][way], measured[1].by_seed[way]


def test_the_floors_are_those_of_the_measurement(floors):
    assert floors["floors"] == {way: selection_recall.floor(floors["recall"][way]) for way in WAYS}
    assert (tuple(floors["seeds"]), tuple(floors["kinds"])) == (selection_recall.SEEDS, selection_recall.KINDS)
    assert floors["capacities"] == selection_recall.CAPACITIES
