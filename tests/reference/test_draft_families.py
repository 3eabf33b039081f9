"""Drafts of many families against transformers' eager attention, which reads each prompt in one call.

Only the layers with full attention score, by the model's own probabilities: windows, states, scalings, soft caps and
sinks included.
"""

import functools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from presift.core.errors import InvalidRequest
from presift.core.importance import window_weights
from presift.core.policies import Heads, Reduction, SpecPc
from presift.draft import calibration
from presift.draft.head_profile import HeadProfile
from presift.draft.scorer import Cancel, HeadReduction, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.draft.warm_up import warm_up
from presift.models import torchvision_ops
from presift.models.folder import resolve

from .draft_families import FULL_LAYERS, REFUSED, WINDOW, settings_of

N, CHUNK, GENERATED = 150, 32, 4
POLICY = SpecPc(capacity=64, window=16, start_layer=1, lookahead_tokens=3)
FAMILIES = sorted(FULL_LAYERS)
READ_WHOLE = {"phi3_long", "falcon_h1", "bamba", "jamba", "granitemoehybrid", "nemotron_h", "lfm2"}
NOT_KEPT = READ_WHOLE | {"qwen3_next", "qwen3_5", "qwen3_5_moe", "gemma3n"}
# transformers' own steps differ from its reading of all tokens at once, so that only the first token can be compared.
STEPS_DIFFER = {"nemotron_h"}
PROMPT = np.random.default_rng(0).integers(2, 128, N).astype(np.uint32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On models this small a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _saved(name, path, **changes):
    torchvision_ops.declare_missing()
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = settings_of(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings | changes))
    with torch.no_grad():
        for weights in model.parameters():
            # Far from a fresh model's, whose attention is the same everywhere.
            _ = weights.normal_(0, 0.25) if weights.ndim > 1 else weights.add_(0.2 * torch.randn_like(weights))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(family) -> its model folder."""
    return functools.cache(lambda name: resolve(str(_saved(name, tmp_path_factory.mktemp(name)))))


@pytest.fixture(scope="module")
def scorer(folder):
    """(family, chunk_tokens) -> TransformersScorer that keeps KV."""
    return functools.cache(lambda name, chunk: _scorer(folder(name), chunk))


def _scorer(folder, chunk=CHUNK, **options):
    return TransformersScorer(folder, chunk_tokens=chunk, prefix_cache_bytes=2**24, **options)


@pytest.fixture(scope="module")
def eager(folder):
    """(family) -> the same model with transformers' eager attention."""
    from transformers import AutoModelForCausalLM

    @functools.cache
    def load(name):
        return AutoModelForCausalLM.from_pretrained(
            folder(name).path, attn_implementation="eager", dtype=torch.float32
        ).eval()

    return load


def _probabilities(model, name, ids):
    """{layer: float32[heads, n, n]} of the layers with full attention."""
    with torch.inference_mode():
        found = model(torch.from_numpy(ids.astype(np.int64))[None], output_attentions=True, use_cache=False).attentions
    found = [each[0].numpy() for each in found if each is not None]
    full = FULL_LAYERS[name]
    return dict(zip(full, found if len(found) == len(full) else [found[layer] for layer in full], strict=True))


def _greedy(model, ids, count):
    for _ in range(count):
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits
        ids = np.append(ids, logits[0, -1].argmax().numpy()).astype(np.uint32)
    return ids


def _rows(probabilities, policy, n):
    """float32[heads of all scored layers, rows, n], weighted: the formula of the paper, on eager probabilities."""
    rows = [each[:, n - policy.window :, :n] for layer, each in probabilities.items() if layer >= policy.start_layer]
    weights = np.append(window_weights(policy.window, policy.weighted_query), np.ones(policy.lookahead_tokens - 1))
    return np.concatenate(rows) * weights[:, None]


def _assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5 * max(1.0, float(expected.max())))


def _assert_eager(scored, model, name, task):
    """The importance and the generated tokens."""
    ids, policy = task.token_ids, task.policy
    read = _greedy(model, ids, task.generated_tokens)
    assert scored.lookahead_token_ids == tuple(read[len(ids) :][: len(scored.lookahead_token_ids)].tolist())
    read = read[: len(ids) + policy.lookahead_tokens - 1]
    rows = _rows(_probabilities(model, name, read), policy, len(ids))
    expected = rows.max((0, 1)) if policy.reduction is Reduction.MAX else rows.sum((0, 1))
    _assert_close(scored.importance, expected)
    _assert_close(scored.coverage_importance, rows.sum((0, 1)))


@pytest.mark.parametrize(("chunk", "reduction"), [(CHUNK, Reduction.MAX), (512, Reduction.SUM)])
@pytest.mark.parametrize("name", FAMILIES)
def test_importance_and_lookahead_are_those_of_eager_attention(name, chunk, reduction, scorer, eager):
    draft, policy = scorer(name, chunk), replace(POLICY, reduction=reduction)
    assert draft.layers.full == FULL_LAYERS[name] and draft.info.layers == len(draft._body.layers)
    assert draft.layers.reads_in_chunks == (name not in READ_WHOLE)
    warm_up(draft, Cancel())
    task = _task(name, PROMPT, policy)
    scored = draft.score(task, Cancel())
    assert len(scored.lookahead_token_ids) == task.lookahead_tokens
    _assert_eager(scored, eager(name), name, task)


@pytest.mark.parametrize("shared", [10, WINDOW, 100])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_kept_beginning_changes_nothing_and_states_are_not_kept(name, shared, folder, eager):
    """Cut inside the first window of a windowed layer, at its end, and far behind it."""
    draft = _scorer(folder(name))
    draft.score(ScoreTask(PROMPT, POLICY), Cancel())
    ids = np.concatenate([PROMPT[:shared], 2 + (PROMPT[:99] + 1) % 126]).astype(np.uint32)
    task = _task(name, ids)
    scored = draft.score(task, Cancel())
    assert scored.cached_tokens == (0 if name in NOT_KEPT else shared)
    _assert_eager(scored, eager(name), name, task)
    again = draft.score(task, Cancel())
    assert again.cached_tokens == (0 if name in NOT_KEPT else len(ids) - POLICY.window)
    _assert_eager(again, eager(name), name, task)


def _task(name, ids, policy=POLICY):
    if name in STEPS_DIFFER:
        return ScoreTask(ids, replace(policy, lookahead_tokens=1), 1)
    return ScoreTask(ids, policy, GENERATED)


def _profile(folder, name, layer):
    return HeadProfile(
        model=folder.id,
        model_revision=folder.revision,
        layers=len(settings_of(name)[1].get("layers_block_type", ())) or settings_of(name)[1]["num_hidden_layers"],
        heads_per_layer=4,
        heads=((layer, 2), (layer, 1)),
        reduction=HeadReduction.SUM,
        recall=1,
        default_recall=1,
        created="",
        presift_version="",
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_calibrated_heads_end_the_forward_pass_at_their_layer(name, folder, eager):
    layer, policy = FULL_LAYERS[name][0], replace(POLICY, heads=Heads.CALIBRATED, lookahead_tokens=1)
    draft = _scorer(folder(name), profile=_profile(folder(name), name, layer))
    run = set()
    for index, each in enumerate(draft._body.layers):
        each.register_forward_hook(lambda *_, index=index: run.add(index))
    probabilities = _probabilities(eager(name), name, PROMPT)[layer]
    rows = _rows({layer: probabilities[[1, 2]]}, replace(policy, start_layer=0), N)
    for _ in range(2):  # the second is read from what was kept of the first
        scored = draft.score(ScoreTask(PROMPT, policy), Cancel())
        _assert_close(scored.importance, rows.sum((0, 1)))
    assert run == set(range(layer))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"gemma3n"}))
def test_the_first_layers_alone_score_the_same(name, folder, eager):
    last = FULL_LAYERS[name][0]
    draft = _scorer(folder(name), layers=last + 1)
    assert draft.info.layers == last + 1 and draft.layers.full == (last,)
    policy = replace(POLICY, start_layer=last, lookahead_tokens=1)
    scored = draft.score(ScoreTask(PROMPT, policy), Cancel())
    rows = _rows({last: _probabilities(eager(name), name, PROMPT)[last]}, policy, N)
    _assert_close(scored.coverage_importance, rows.sum((0, 1)))


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_heads_of_other_layers_are_refused_by_name(name, folder):
    with pytest.raises(InvalidRequest, match=r"heads of layer 1; it must be heads of layers with full attention: [23]"):
        _scorer(folder(name), profile=_profile(folder(name), name, 1))


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_calibration_records_layers_with_full_attention_only(name, tmp_path, tiny_model, monkeypatch):
    for setting, value in (("_CHARACTERS", 900), ("_QUESTIONS_PER_KIND", 1), ("_DECOYS", 0)):
        monkeypatch.setattr(calibration, setting, value)
    _saved(name, tmp_path, vocab_size=512, max_position_embeddings=4096)
    for file in tiny_model("tinyc").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    folder, readings = resolve(str(tmp_path)), []
    choose = calibration._choose
    monkeypatch.setattr(calibration, "_choose", lambda worth, *rest: choose(readings.append(worth) or worth, *rest))
    found = calibration.calibrate(_scorer(folder, 256), folder, lambda *_: None, Cancel())
    assert [layer for layer, worth in enumerate(readings[0]) if worth.any()] == list(FULL_LAYERS[name])
    if found.profile is not None:  # random weights may find nothing
        assert set(found.profile.by_layer) <= set(FULL_LAYERS[name])


def test_a_start_layer_above_all_full_attention_is_refused(scorer):
    with pytest.raises(InvalidRequest, match=r"start_layer is 3; it must be <= 2 \(the draft's last layer with full"):
        scorer("qwen3", CHUNK).score(ScoreTask(PROMPT, replace(POLICY, start_layer=3)), Cancel())


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_bfloat16_is_close_to_float32(name, folder, scorer):
    exact = scorer(name, CHUNK).score(ScoreTask(PROMPT, POLICY), Cancel()).importance
    rough = TransformersScorer(folder(name), "bfloat16").score(ScoreTask(PROMPT, POLICY), Cancel()).importance
    assert np.corrcoef(exact, rough)[0, 1] > 0.8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_position_embeddings": "512"}, "a configuration that transformers accepts"),
        ({"num_hidden_layers": 3}, "a configuration that transformers accepts"),
        ({"dtype": "float3"}, "a configuration that transformers accepts"),
        ({"vocab_size": 64}, "a model that transformers can load"),
        ({"num_key_value_heads": 0}, "a model that transformers can load"),
        ({"attention_bias": True}, "a model whose files contain all its weights"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "a model that transformers can load"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_without_a_traceback(changes, reason, tmp_path):
    config = _saved("cohere2", tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        TransformersScorer(resolve(str(tmp_path)))
    assert refusal.value.field == "model"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_score_is_refused_with_the_reason_before_it_serves(name, tmp_path):
    with pytest.raises(InvalidRequest, match=REFUSED[name][2]) as refusal:
        warm_up(TransformersScorer(resolve(str(_saved(name, tmp_path)))), Cancel())
    assert refusal.value.field == "model"
