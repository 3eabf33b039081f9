"""Calibration: heads that look at the answers are found, and nothing is claimed where nothing is better."""

import numpy as np
import pytest

from presift.core.errors import InvalidRequest
from presift.draft import calibration
from presift.draft.calibration import DEFAULT_POLICY, calibrate
from presift.draft.calibration_prompts import KINDS, make
from presift.draft.head_profile import check_fits
from presift.draft.layers import Layers
from presift.draft.scorer import Cancel, Cancelled, HeadReduction
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import resolve
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.settings import OrchestratorSettings

N = 2048
GOOD = ((1, 2), (5, 0))
EVERY_LAYER = Layers(8, tuple(range(8)))


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


def small(monkeypatch):
    """A short calibration: the tokens of the tiny model are bytes."""
    for name, value in (("_CHARACTERS", 900), ("_QUESTIONS_PER_KIND", 2), ("_DECOYS", 0)):
        monkeypatch.setattr(calibration, name, value)


def chosen(folder, layers=EVERY_LAYER, **kwargs):
    ranking, held_out = ([reading(seed, **kwargs) for seed in seeds] for seeds in (range(6), range(6, 12)))
    return calibration._choose(calibration._mean_worth(ranking), held_out, layers, folder)


def test_the_heads_that_look_at_the_answers_are_chosen_and_few_layers_run(folder):
    found = chosen(folder)
    assert (1, 2) in found.profile.heads
    assert found.profile.layers_read == 2  # (5, 0) finds nothing more
    assert found.recall == pytest.approx(1.0) and found.default_recall < 0.6
    assert (found.profile.recall, found.profile.layers, found.profile.heads_per_layer) == (1.0, 8, 4)


def test_a_deeper_head_is_taken_where_the_early_ones_find_nothing(folder):
    found = chosen(folder, good_heads=[(6, 3)])
    assert (6, 3) in found.profile.heads and found.profile.layers_read == 7


def test_heads_of_layers_without_full_attention_are_not_ranked(folder):
    found = chosen(folder, layers=Layers(8, (3, 5, 7)))
    assert (5, 0) in found.profile.heads
    assert {layer for layer, _ in found.profile.heads} <= {3, 5, 7}
    assert found.profile.layers == 8


def test_nothing_is_written_where_no_heads_reach_the_default(folder):
    found = chosen(folder, good_heads=(), default_is_good=True)
    assert found.profile is None
    assert found.recall < found.default_recall == pytest.approx(1.0)


def test_a_model_is_calibrated_from_its_prompts_to_a_profile_that_fits(folder, monkeypatch):
    small(monkeypatch)
    scorer, seen = TransformersScorer(folder, chunk_tokens=256, prefix_cache_bytes=2**26), []
    found = calibrate(scorer, folder, lambda done, total: seen.append((done, total)), Cancel())
    assert seen == [(count, 12) for count in range(1, 13)]
    assert 0.0 <= found.default_recall <= 1.0
    if found.profile is not None:  # random weights may find nothing
        check_fits(found.profile, folder, scorer._model.config, scorer.layers)


def test_each_kind_of_question_ranks_heads_and_compares_sets(folder, monkeypatch):
    asked, read = [], calibration._read
    small(monkeypatch)

    def recorded(scorer, tokenizer, document, question, cancel, *, with_default):
        asked.append((question.kind, with_default))
        return read(scorer, tokenizer, document, question, cancel, with_default=with_default)

    monkeypatch.setattr(calibration, "_read", recorded)
    scorer = TransformersScorer(folder, chunk_tokens=256, prefix_cache_bytes=2**26)
    calibrate(scorer, folder, lambda *_: None, Cancel())
    assert sorted(asked) == sorted((kind, default) for kind in KINDS for default in (False, True))


def test_the_worth_of_the_real_rows_is_a_share(folder, monkeypatch):
    """The rows that calibration records are those that scoring sums, read in chunks or not."""
    results = []
    for chunk_tokens in (64, 4096):
        scorer = TransformersScorer(folder, chunk_tokens=chunk_tokens)
        tokenizer = calibration._load_tokenizer(folder)
        document = make(0, 100, 1, 0)
        found = calibration._read(scorer, tokenizer, document, document.questions[0], Cancel())
        worth = calibration._mean_worth([found])
        assert (worth >= 0).all() and (worth <= 1.0 + 1e-6).all()
        np.testing.assert_allclose(found.peaks[2:].max((0, 1)).shape, found.default.shape)
        results.append(found)
    np.testing.assert_allclose(results[0].summed, results[1].summed, atol=1e-5)
    np.testing.assert_allclose(results[0].peaks, results[1].peaks, atol=1e-5)


def test_a_cancelled_calibration_stops(folder, monkeypatch):
    small(monkeypatch)
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


@pytest.mark.parametrize("seed", range(8))
def test_a_document_holds_its_facts_once_and_its_answers_in_them(seed):
    document = make(seed, 20_000, 6, 4)
    assert make(seed, 20_000, 6, 4) == document
    assert 20_000 <= len(document.text) < 22_000
    assert len({question.kind for question in document.questions}) == 6 and len(document.questions) == 36
    for question in document.questions:
        assert all(document.text.count(fact) == 1 for fact in question.facts)
        assert all(any(answer in fact for fact in question.facts) for answer in question.answers)
        assert not any(answer in question.text for answer in question.answers)


def test_sets_of_heads_come_in_both_reductions():
    sets = list(calibration._head_sets(np.random.default_rng(0).random((8, 4)), range(8)))
    assert {each.reduction for each in sets} == set(HeadReduction)
    assert max(each.layers_read for each in sets) == 8 and min(each.layers_read for each in sets) <= 2
