"""The reference of the GPU checks: transformers with dropped KV pairs masked."""

import gpu.one_configuration  # noqa: F401 - finds tests/reference
import numpy as np
import pytest

PROMPT, ANSWER = 90, [3, 4, 5]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def folder():
    from real_engine import random_folder

    keeper, folder = random_folder(**SIZES)
    with keeper:
        yield folder.path


@pytest.fixture
def prompt():
    return np.random.default_rng(0).integers(0, 64, PROMPT, dtype=np.uint32)


def stock(folder, tokens):
    """float32[tokens, vocabulary]: log probabilities of transformers' own attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()


def test_with_all_pairs_it_is_the_model(folder, prompt):
    from gpu.kv_reference import logprobs

    expected = stock(folder, [*map(int, prompt), *ANSWER[:-1]])[PROMPT - 1 :]
    everything = np.ones((2, 2, PROMPT - 1), dtype=bool)
    for kept in (None, everything):
        np.testing.assert_allclose(logprobs(folder, prompt, ANSWER, kept), expected, atol=1e-4)


def test_dropped_pairs_are_not_read_and_kept_ones_are(folder, prompt):
    from gpu.kv_reference import logprobs

    kept = np.zeros((2, 2, PROMPT - 1), dtype=bool)
    kept[..., -20:] = True
    few = logprobs(folder, prompt, ANSWER, kept)
    assert np.abs(few - logprobs(folder, prompt, ANSWER)).max() > 0.1
    # Each head has a mask of its own.
    kept[1, 0, :10] = True
    assert np.abs(few - logprobs(folder, prompt, ANSWER, kept)).max() > 1e-3


def test_as_many_are_selected_as_fit_and_the_window_is_among_them(folder, prompt):
    from gpu.kv_reference import selected
    from real_engine import plan

    kept = selected(folder, prompt, plan(40))
    assert kept.shape == (2, 2, PROMPT - 1)
    assert (np.count_nonzero(kept, axis=2) == 40).all()
    assert kept[..., -32:].all()
    assert not (kept[0] == kept[1]).all()
