"""Scorers over the tiny reference models, loaded once."""

import functools

import numpy as np
import pytest
import torch

from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import resolve


@pytest.fixture(autouse=True)
def one_thread():
    """On models this small a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_scorer(tiny_model):
    """(name, chunk_tokens, dtype) -> TransformersScorer."""

    @functools.cache
    def load(name="tinyq", chunk_tokens=512, dtype="float32"):
        return TransformersScorer(resolve(str(tiny_model(name))), dtype, chunk_tokens=chunk_tokens)

    return load


@pytest.fixture
def prompt():
    """n -> uint32[n], the same each time."""
    return lambda n, seed=0: np.random.default_rng(seed).integers(0, 512, n).astype(np.uint32)
