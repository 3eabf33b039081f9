"""Prefix reuse: only what is new is read, the result is that of a fresh reading, and tenants share nothing."""

import numpy as np
import pytest
import torch

from presift.core.policies import Heads, SpecPc
from presift.draft.head_profile import HeadProfile
from presift.draft.prefix_cache import PrefixCache, ReadPrompt, common_length
from presift.draft.scorer import Cancel, Cancelled, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import resolve

POLICY = SpecPc(capacity=64, window=32, start_layer=0)
CALIBRATED = SpecPc(capacity=64, heads=Heads.CALIBRATED)
N, CHUNK = 200, 32
MIB = 2**20


@pytest.fixture
def folder(tiny_model):
    return resolve(str(tiny_model("tinyq")))


@pytest.fixture
def new_scorer(folder):
    """(bytes) -> a scorer with an empty prefix cache."""
    profile = HeadProfile(
        model=folder.id,
        model_revision=folder.revision,
        layers=4,
        heads_per_layer=4,
        heads=((1, 3), (0, 2)),
        reduction="max",
        recall=1,
        default_recall=1,
        created="",
        presift_version="",
    )
    return lambda size=MIB: TransformersScorer(folder, chunk_tokens=CHUNK, profile=profile, prefix_cache_bytes=size)


def score(scorer, ids, policy=POLICY, lookahead_tokens=0, *, salt="", cancel=None):
    return scorer.score(ScoreTask(ids, policy, lookahead_tokens, salt), cancel or Cancel())


def tokens_read(scorer, run):
    """How many positions go through the model's first layer while `run` runs, and its result."""
    read = []
    hook = scorer._body.layers[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    result = run()
    hook.remove()
    return sum(read), result


def spliced(prompt, shared):
    """A prompt that shares its first tokens with prompt(N)."""
    ids = prompt(N + 40, seed=1)
    ids[:shared] = prompt(N)[:shared]
    ids[shared] = (prompt(N)[shared] + 1) % 512 if shared < N else ids[shared]
    return ids


@pytest.mark.parametrize("policy", [POLICY, CALIBRATED, SpecPc(capacity=64, start_layer=1, lookahead_tokens=5)])
@pytest.mark.parametrize("shared", [1, 7, CHUNK, CHUNK + 1, 64, 150, N - 33, N - 32, N - 31, N - 1, N])
def test_a_prompt_that_shares_its_beginning_scores_as_a_fresh_one(policy, shared, new_scorer, prompt):
    ids, scorer = spliced(prompt, shared), new_scorer()
    score(scorer, prompt(N), policy)
    read, reused = tokens_read(scorer, lambda: score(scorer, ids, policy, 3))
    fresh = score(new_scorer(0), ids, policy, 3)
    expected = 0 if policy is CALIBRATED else shared  # the first prompt read two layers only; the lookahead needs all
    assert reused.cached_tokens == expected and fresh.cached_tokens == 0
    steps = max(3, policy.lookahead_tokens) - 1
    assert read <= ids.size - expected + steps
    np.testing.assert_allclose(reused.importance, fresh.importance, atol=1e-5)
    np.testing.assert_allclose(reused.coverage_importance, fresh.coverage_importance, rtol=1e-4, atol=1e-5)
    assert reused.lookahead_token_ids == fresh.lookahead_token_ids


@pytest.mark.parametrize("shared", [1, 64, 150, N])
def test_an_early_exit_keeps_and_reuses_its_layers(shared, new_scorer, prompt):
    ids, scorer = spliced(prompt, shared), new_scorer()
    score(scorer, prompt(N), CALIBRATED)
    reused = score(scorer, ids, CALIBRATED)
    assert reused.cached_tokens == shared
    np.testing.assert_allclose(reused.importance, score(new_scorer(0), ids, CALIBRATED).importance, atol=1e-5)


def test_chunks_that_fall_alike_give_equal_bits(new_scorer, prompt):
    scorer = new_scorer()
    score(scorer, prompt(128))
    ids = np.append(prompt(128), prompt(64, seed=3))
    reused, fresh = score(scorer, ids), score(new_scorer(0), ids)
    assert reused.cached_tokens == 128
    np.testing.assert_array_equal(reused.importance, fresh.importance)


def test_the_same_prompt_again_reads_its_window_alone(new_scorer, prompt):
    scorer = new_scorer()
    first = score(scorer, prompt(N))
    read, again = tokens_read(scorer, lambda: score(scorer, prompt(N)))
    assert (read, again.cached_tokens) == (POLICY.window, N - POLICY.window)
    np.testing.assert_allclose(again.importance, first.importance, atol=1e-5)


def test_without_scores_the_last_token_is_read(new_scorer, prompt):
    scorer = new_scorer()
    first = score(scorer, prompt(N), None, 4)
    again = score(scorer, prompt(N), None, 4)
    assert again.cached_tokens == N - 1 and again.lookahead_token_ids == first.lookahead_token_ids


def test_the_lookahead_is_not_kept_as_part_of_the_prompt(new_scorer, prompt):
    scorer = new_scorer()
    lookahead = score(scorer, prompt(N), POLICY, 6).lookahead_token_ids
    ids = np.append(prompt(N), np.array(lookahead, dtype=np.uint32))
    reused = score(scorer, ids)
    assert reused.cached_tokens == N - POLICY.window + len(lookahead)  # the window starts in the prompt
    np.testing.assert_allclose(reused.importance, score(new_scorer(0), ids).importance, atol=1e-5)


def test_tenants_share_nothing(new_scorer, prompt):
    """By counts, and by a wrong KV that only its own tenant may see."""
    scorer = new_scorer()
    right = score(scorer, prompt(N), salt="a")
    with torch.inference_mode():
        for keys, values in scorer._kept._prompts[1].layers:  # wrong from now on
            keys.zero_()
            values.zero_()
    for salt in ("b", ""):
        read, other = tokens_read(scorer, lambda salt=salt: score(scorer, prompt(N), salt=salt))
        assert (read, other.cached_tokens) == (N, 0)
        np.testing.assert_array_equal(other.importance, right.importance)
    wrong = score(scorer, prompt(N), salt="a")
    assert wrong.cached_tokens and np.abs(wrong.importance - right.importance).max() > 1e-3


def test_a_conversation_reads_about_its_last_prompt_once(new_scorer, prompt):
    scorer, whole, read = new_scorer(), prompt(600), 0
    for turn in range(10):
        count, _ = tokens_read(scorer, lambda turn=turn: score(scorer, whole[: 60 * (turn + 1)]))
        read += count
    assert read <= 600 + 10 * POLICY.window
    assert len(scorer._kept._prompts) == 1  # each turn takes the place of the one before


def test_memory_is_bounded_and_flat(new_scorer, prompt):
    one = new_scorer()
    score(one, prompt(N))
    size = one._kept.nbytes
    scorer, seen = new_scorer(3 * size + 1), []
    for seed in range(12):
        score(scorer, prompt(N, seed))
        seen.append(scorer._kept.nbytes)
    assert seen[2:] == [3 * size] * 10
    assert score(scorer, prompt(N, 11)).cached_tokens and not score(scorer, prompt(N, 0)).cached_tokens


def test_a_kept_prompt_is_one_block_of_memory(new_scorer, prompt):
    scorer = new_scorer()
    score(scorer, prompt(N))
    [kept] = scorer._kept._prompts.values()
    tensors = [each for layer in kept.layers for each in layer]
    blocks = {each.untyped_storage().data_ptr() for each in tensors}
    assert len(blocks) == 1 and tensors[0].untyped_storage().nbytes() == kept.nbytes


def test_a_prompt_larger_than_the_cache_is_not_kept(new_scorer, prompt):
    scorer = new_scorer(1000)
    score(scorer, prompt(N))
    assert scorer._kept.nbytes == 0


def test_without_memory_the_kept_prompts_make_room(new_scorer, prompt, monkeypatch):
    scorer = new_scorer()
    right = score(scorer, prompt(N))
    score(scorer, prompt(N, 1))
    keep = scorer._keep

    def fails_while_others_are_kept(task, cache, layers):
        if scorer._kept.nbytes:
            raise torch.OutOfMemoryError
        keep(task, cache, layers)

    monkeypatch.setattr(scorer, "_keep", fails_while_others_are_kept)
    again = score(scorer, prompt(N))
    assert again.cached_tokens == 0 and len(scorer._kept._prompts) == 1
    np.testing.assert_array_equal(again.importance, right.importance)


def test_without_memory_for_a_copy_a_prompt_is_scored_and_not_kept(new_scorer, prompt, monkeypatch):
    scorer = new_scorer()
    right = score(scorer, prompt(N))

    def fails(layers):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("presift.draft.prefix_cache._in_one_block", fails)
    again = score(scorer, prompt(N))
    assert again.cached_tokens and scorer._kept.nbytes == 0
    np.testing.assert_allclose(again.importance, right.importance, atol=1e-5)


def test_a_prompt_too_large_for_the_memory_fails(new_scorer, prompt, monkeypatch):
    scorer = new_scorer()

    def fails(task, cache, layers):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(scorer, "_keep", fails)
    with pytest.raises(torch.OutOfMemoryError):
        score(scorer, prompt(N))


def test_a_cancelled_prompt_is_not_kept(new_scorer, prompt):
    scorer, cancel = new_scorer(), Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        score(scorer, prompt(N), cancel=cancel)
    assert scorer._kept.nbytes == 0


def kept(ids, salt="", layers=2):
    tensor = torch.arange(len(ids), dtype=torch.float32)[None, None, :, None].clone()
    return ReadPrompt(salt, np.array(ids, dtype=np.uint32), [(tensor, tensor)] * layers)


def test_the_longest_beginning_is_found():
    cache = PrefixCache(10**6)
    for ids in ([1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9, 9], [1, 2, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7], [5]):
        cache.put(kept(ids))
    wanted = np.array([1, 2, 3, 4, 5], dtype=np.uint32)
    tokens, kv = cache.find("", wanted, 2)
    assert tokens == 4 and [each.shape[2] for pair in kv for each in pair] == [4] * 4
    assert cache.find("", wanted, 3) == (0, [])  # no prompt has so many layers
    assert cache.find("other", wanted, 2) == (0, [])


def test_another_question_replaces_the_first_but_another_document_does_not():
    cache = PrefixCache(10**6)
    document = list(range(100))
    cache.put(kept([*document, 200, 201]))
    cache.put(kept([*document, 300]))
    assert len(cache._prompts) == 1
    cache.put(kept([*document[:50], *range(400, 450)]))
    assert len(cache._prompts) == 2


@pytest.mark.parametrize(
    ("first", "second", "length"), [([], [], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1)]
)
def test_common_length(first, second, length):
    assert common_length(np.array(first), np.array(second)) == length
