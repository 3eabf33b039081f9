"""Calibration: heads that look at the answers are found, and nothing is claimed where nothing is better."""

import numpy as np
import pytest

from presift.core.errors import InvalidRequest
from presift.draft import calibration
from presift.draft.calibration import DEFAULT_POLICY, calibrate
from presift.draft.calibration_prompts import KINDS, make
from presift.draft.head_profile import check_fits
from presift.draft.scorer import Cancel, Cancelled, HeadReduction
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import resolve
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.settings import OrchestratorSettings

N = 2048
GOOD = ((1, 2), (5, 0))


def reading(seed, *, good_heads=GOOD, default_is_good=False):
    """Eight layers of four heads that attend to noise; the good ones attend to the answers too."""
    rng = np.random.default_rng(seed)
    starts = rng.choice(np.arange(50, N - 100, 40), 3, replace=False)
    answers = [int(start) + step for start in starts for step in (0, 1)]
    summed = rng.random((8, 4, N)).astype(np.float32)
    for layer, head in good_heads:
        summed[layer, head] *= 0.01
        summed[layer, head, answers] = 5.0
    default = rng.random(N).astype(np.float32)
    if default_is_good:
        default[answers] = 9.0
    return calibration._Reading(summed, summed, answers, answers, default)


@pytest.fixture
def folder(tiny_model):
    return resolve(str(tiny_model("tinyc")))


def chosen(folder, **kwargs):
    ranking, held_out = ([reading(seed, **kwargs) for seed in seeds] for seeds in (range(6), range(6, 12)))
    return calibration._choose(calibration._mean_worth(ranking), held_out, folder)


def test_the_heads_that_look_at_the_answers_are_chosen_and_few_layers_run(folder):
    found = chosen(folder)
    assert found.profile.heads[0] == (1, 2)
    assert found.profile.layers_read == 2  # (5, 0) finds nothing more
    assert found.recall == pytest.approx(1.0) and found.default_recall < 0.6
    assert (found.profile.recall, found.profile.layers, found.profile.heads_per_layer) == (1.0, 8, 4)


def test_a_deeper_head_is_taken_where_the_early_ones_find_nothing(folder):
    found = chosen(folder, good_heads=[(6, 3)])
    assert found.profile.heads[0] == (6, 3) and found.profile.layers_read == 7


def test_nothing_is_written_where_no_heads_reach_the_default(folder):
    found = chosen(folder, good_heads=(), default_is_good=True)
    assert found.profile is None
    assert found.recall < found.default_recall == pytest.approx(1.0)


def test_a_model_is_calibrated_from_its_prompts_to_a_profile_that_fits(folder, monkeypatch):
    monkeypatch.setattr(calibration, "_CHARACTERS", 900)
    scorer, seen = TransformersScorer(folder, chunk_tokens=256), []
    found = calibrate(scorer, folder, lambda done, total: seen.append((done, total)), Cancel())
    assert seen == [(count, 3 * len(KINDS)) for count in range(1, 3 * len(KINDS) + 1)]
    assert 0.0 <= found.default_recall <= 1.0
    if found.profile is not None:  # random weights may find nothing
        check_fits(found.profile, folder, scorer._model.config, 4)


def test_the_worth_of_the_real_rows_is_a_share(folder, monkeypatch):
    """The rows that calibration records are those that scoring sums, read in chunks or not."""
    results = []
    for chunk_tokens in (64, 4096):
        scorer = TransformersScorer(folder, chunk_tokens=chunk_tokens)
        tokenizer = calibration._load_tokenizer(folder)
        found = calibration._read(scorer, tokenizer, make("direct", 400, 0), Cancel())
        worth = calibration._mean_worth([found])
        assert (worth >= 0).all() and (worth <= 1.0 + 1e-6).all()
        np.testing.assert_allclose(found.peaks[2:].max((0, 1)).shape, found.default.shape)
        results.append(found)
    np.testing.assert_allclose(results[0].summed, results[1].summed, atol=1e-5)
    np.testing.assert_allclose(results[0].peaks, results[1].peaks, atol=1e-5)


def test_a_cancelled_calibration_stops(folder, monkeypatch):
    monkeypatch.setattr(calibration, "_CHARACTERS", 900)
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        calibrate(TransformersScorer(folder), folder, lambda *_: None, cancel)


def test_a_model_without_tokenizer_is_refused(tiny_model, tiny_scorer):
    with pytest.raises(InvalidRequest, match="a folder with tokenizer"):
        calibrate(tiny_scorer(), resolve(str(tiny_model("tinyq"))), lambda *_: None, Cancel())


def test_the_default_that_profiles_must_beat_is_what_the_orchestrator_sends():
    spec_pc = policy_defaults(OrchestratorSettings.model_construct()).spec_pc
    for name in ("window", "pool", "kernel", "neighbors", "reduction", "weighted_query", "lookahead_tokens"):
        assert getattr(DEFAULT_POLICY, name) == getattr(spec_pc, name), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_a_prompt_holds_its_facts_once_and_its_answers_in_them(kind, seed):
    prompt = make(kind, 5000, seed)
    assert make(kind, 5000, seed) == prompt
    assert 5000 <= len(prompt.document) < 5300
    assert all(prompt.document.count(fact) == 1 for fact in prompt.facts)
    assert all(any(answer in fact for fact in prompt.facts) for answer in prompt.answers)
    assert not any(answer in prompt.question for answer in prompt.answers)


def test_sets_of_heads_come_in_both_reductions():
    sets = list(calibration._head_sets(np.random.default_rng(0).random((8, 4))))
    assert {each.reduction for each in sets} == set(HeadReduction)
    assert max(each.layers_read for each in sets) == 8 and min(each.layers_read for each in sets) <= 2
