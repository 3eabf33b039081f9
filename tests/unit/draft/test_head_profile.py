"""Head profiles: the heads that score, the layers that need not run, and which file fits which model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from presift.core.errors import InvalidRequest, PresiftError, RouteUnsupported
from presift.core.policies import Heads, SpecPc
from presift.draft import head_profile
from presift.draft.head_profile import HeadProfile
from presift.draft.scorer import Cancel, HeadReduction, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.draft.warm_up import warm_up
from presift.models.folder import resolve

HEADS = ((1, 3), (0, 2), (1, 0))
CALIBRATED = SpecPc(capacity=64, heads=Heads.CALIBRATED)


@pytest.fixture
def folder(tiny_model):
    return resolve(str(tiny_model("tinyq")))


def profile_of(folder, **changes):
    values = {
        "model": folder.id,
        "model_revision": folder.revision,
        "layers": 4,
        "heads_per_layer": 4,
        "heads": HEADS,
        "reduction": "sum",
        "recall": 0.9,
        "default_recall": 0.8,
        "created": "2026-11-29",
        "presift_version": "0",
    }
    return HeadProfile.model_validate_json(json.dumps(values | changes))


class AllRows:
    """The rows of every head, to add up by hand."""

    def __init__(self, window):
        self.window, self.rows = window, {}

    def observe(self, layer, attention):
        ((_, rows),) = attention.probabilities(attention.keys - self.window)
        self.rows[layer] = rows * torch.linspace(0, 1, self.window)[:, None]


@pytest.mark.parametrize("reduction", list(HeadReduction))
@pytest.mark.parametrize("chunk_tokens", [64, 512])
def test_the_profiles_heads_and_no_others_score(reduction, chunk_tokens, folder, prompt):
    scorer = TransformersScorer(folder, chunk_tokens=chunk_tokens, profile=profile_of(folder, reduction=reduction))
    scored = scorer.score(ScoreTask(prompt(200), CALIBRATED), Cancel())
    seen = AllRows(CALIBRATED.window)
    TransformersScorer(folder).score(ScoreTask(prompt(200)), Cancel(), seen)
    rows = torch.stack([seen.rows[layer][head] for layer, head in HEADS])
    np.testing.assert_allclose(scored.coverage_importance, rows.sum((0, 1)), rtol=1e-4, atol=1e-6)
    by_reduction = {"sum": rows.sum((0, 1)), "max": rows.amax((0, 1)), "head_max": rows.sum(1).amax(0)}
    expected = by_reduction[reduction]
    np.testing.assert_allclose(scored.importance, expected, rtol=1e-4, atol=1e-6)


def _layers_run(scorer, task):
    """How many layers run their feed-forward part, and the result."""
    run = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, index=index: run.append(index))
        for index, layer in enumerate(scorer._body.layers)
    ]
    result = scorer.score(task, Cancel())
    for hook in hooks:
        hook.remove()
    return sorted(set(run)), result


def test_layers_above_the_deepest_head_do_not_run(folder, prompt):
    scorer = TransformersScorer(folder, chunk_tokens=64, profile=profile_of(folder))
    run, early = _layers_run(scorer, ScoreTask(prompt(200), CALIBRATED))
    assert run == [0]  # of layer 1 only the attention's queries and keys are needed
    run, late = _layers_run(scorer, ScoreTask(prompt(200), CALIBRATED, lookahead_tokens=3))
    assert run == [0, 1, 2, 3] and len(late.lookahead_token_ids) == 3
    np.testing.assert_array_equal(early.importance, late.importance)


def test_explicit_policies_are_scored_as_without_a_profile(folder, prompt):
    policy = SpecPc(capacity=64, start_layer=1, lookahead_tokens=4)
    with_profile, without = (
        TransformersScorer(folder, profile=profile).score(ScoreTask(prompt(200), policy), Cancel())
        for profile in (profile_of(folder), None)
    )
    np.testing.assert_array_equal(with_profile.importance, without.importance)
    np.testing.assert_array_equal(with_profile.coverage_importance, without.coverage_importance)


def test_calibrated_heads_need_a_profile(tiny_scorer, prompt):
    with pytest.raises(RouteUnsupported, match="no head profile"):
        tiny_scorer().score(ScoreTask(prompt(100), CALIBRATED), Cancel())


def test_the_profile_is_part_of_the_revision(folder, tiny_scorer):
    profile, other = profile_of(folder), profile_of(folder, heads=HEADS[:2])
    with_profile, with_other = (TransformersScorer(folder, profile=each).info for each in (profile, other))
    assert with_profile.head_profile == profile.digest
    assert len({tiny_scorer().info.revision, with_profile.revision, with_other.revision}) == 3
    assert profile.digest != profile_of(folder, reduction="max").digest
    assert profile.digest == profile_of(folder, created="2027-01-01", heads=HEADS[::-1]).digest


@pytest.mark.parametrize("layers", [2, 3])
def test_a_truncated_draft_scores_the_same_and_does_not_generate(layers, folder, prompt):
    profile = profile_of(folder)
    whole, part = (TransformersScorer(folder, layers=count, profile=profile) for count in (None, layers))
    warm_up(part, Cancel())
    scored = [scorer.score(ScoreTask(prompt(200), CALIBRATED), Cancel()).importance for scorer in (whole, part)]
    np.testing.assert_array_equal(*scored)
    assert (part.info.layers, part.info.all_layers, part.info.can_look_ahead) == (layers, 4, False)
    assert len(part._body.layers) == layers and whole.info.can_look_ahead
    assert part.info.revision != whole.info.revision


@pytest.mark.parametrize(
    ("changes", "layers", "message"),
    [
        ({"model_revision": "other"}, None, "head_profile.model_revision is other"),
        ({"layers": 5}, None, "head_profile.layers is 5; it must be 4"),
        ({"heads_per_layer": 8}, None, "head_profile.heads_per_layer is 8; it must be 4"),
        ({"heads": [[4, 0]]}, None, r"head_profile.heads is \(4, 0\)"),
        ({"heads": [[0, 4]]}, None, r"head_profile.heads is \(0, 4\)"),
        ({"heads": [[0, -1]]}, None, r"head_profile.heads is \(0, -1\)"),
        ({"heads": [[2, 1]]}, 2, "load more with --layers 0..2"),
        ({}, 5, r"layers is 0..4; it must be 0..3 at most"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name(changes, layers, message, folder):
    with pytest.raises(InvalidRequest, match=message):
        TransformersScorer(folder, layers=layers, profile=profile_of(folder, **changes))


@pytest.mark.parametrize("text", ["", "[]", '{"heads": []}', "not json"])
def test_a_damaged_file_is_refused(text, folder, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"head_profile is .*profile.json; it must be a head profile"):
        head_profile.find(str(file), folder, tmp_path)


def test_a_profile_is_found_beside_the_model_then_in_the_folder_of_profiles(folder, tmp_path):
    folder = replace(folder, path=tmp_path / "model")
    profiles, beside, kept = tmp_path / "kept", profile_of(folder, recall=0.5), profile_of(folder)
    assert head_profile.find("auto", folder, profiles) is None
    head_profile.write(kept, profiles / f"{folder.revision}.json")
    assert head_profile.find("auto", folder, profiles) == kept
    assert head_profile.save(beside, folder, profiles) == folder.path / head_profile.FILE_NAME
    assert head_profile.find("auto", folder, profiles) == beside
    assert head_profile.find("none", folder, profiles) is None
    assert head_profile.find(str(profiles / f"{folder.revision}.json"), folder, tmp_path) == kept


def test_a_read_only_model_folder_sends_the_profile_to_the_folder_of_profiles(folder, tmp_path):
    (tmp_path / "file").write_text("")
    folder = replace(folder, path=tmp_path / "file")  # no folder, so nothing can be written into it
    file = head_profile.save(profile_of(folder), folder, tmp_path / "kept")
    assert file == tmp_path / "kept" / f"{folder.revision}.json"
    with pytest.raises(PresiftError, match=r"head_profile is .*; it must be a file that can be written"):
        head_profile.save(profile_of(folder), folder, tmp_path / "file")
