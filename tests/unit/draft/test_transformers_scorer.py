"""The scorer over the tiny models: chunks, lookahead, cancellation, what runs and what does not."""

import json

import numpy as np
import pytest
import torch

from presift.core.errors import DeadlineExceeded, InvalidRequest
from presift.core.policies import Reduction, SpecPc
from presift.draft import int8_linear
from presift.draft.scorer import Cancel, Cancelled, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.draft.warm_up import warm_up
from presift.models.dtype import computes_int8, native_dtype
from presift.models.folder import resolve
from presift.rpc.deadline import Deadline

POLICY = SpecPc(capacity=64, start_layer=0)


class CountingCancel(Cancel):
    """Cancels itself at the given look."""

    def __init__(self, at):
        super().__init__()
        self.looks, self._at = 0, at

    def check(self):
        self.looks += 1
        if self.looks == self._at:
            self.cancel()
        super().check()


def _greedy(scorer, ids, tokens):
    output = scorer._model.generate(
        torch.tensor(ids.astype("int64"))[None], max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return tuple(output[0, len(ids) :].tolist())


@pytest.mark.parametrize("name", ["tinyq", "tinyl"])
@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("chunk_tokens", [16, 37, 299, 300])
def test_chunks_do_not_change_the_scores(name, reduction, chunk_tokens, tiny_scorer, prompt):
    task = ScoreTask(prompt(300), SpecPc(capacity=64, window=40, start_layer=1, reduction=reduction), 4)
    whole = tiny_scorer(name, 4096).score(task, Cancel())
    cut = tiny_scorer(name, chunk_tokens).score(task, Cancel())
    scale = max(1.0, float(whole.importance.max()))
    np.testing.assert_allclose(cut.importance, whole.importance, atol=2e-5 * scale)
    np.testing.assert_allclose(cut.coverage_importance, whole.coverage_importance, rtol=1e-3, atol=1e-4)
    assert cut.lookahead_token_ids == whole.lookahead_token_ids


@pytest.mark.parametrize("name", ["tinyq", "tinyl"])
@pytest.mark.parametrize("chunk_tokens", [32, 512])
@pytest.mark.parametrize("policy", [None, POLICY, SpecPc(capacity=64, start_layer=0, lookahead_tokens=20)])
def test_the_lookahead_is_the_models_own_greedy_continuation(name, chunk_tokens, policy, tiny_scorer, prompt):
    scorer = tiny_scorer(name, chunk_tokens)
    scored = scorer.score(ScoreTask(prompt(150), policy, 12), Cancel())
    assert scored.lookahead_token_ids == _greedy(scorer, prompt(150), 12)


def test_the_lookahead_ends_with_the_end_token(tiny_scorer, prompt, monkeypatch):
    scorer = tiny_scorer("tinyq")
    tokens = _greedy(scorer, prompt(150), 12)
    end = tokens[4]
    monkeypatch.setattr(scorer, "_end_ids", frozenset({end}))
    stopped = scorer.score(ScoreTask(prompt(150), POLICY, 12), Cancel())
    assert stopped.lookahead_token_ids == tokens[: tokens.index(end) + 1]


def test_rows_after_the_end_token_are_not_scored(tiny_scorer, prompt, monkeypatch):
    scorer = tiny_scorer("tinyq")
    tokens = _greedy(scorer, prompt(150), 12)
    monkeypatch.setattr(scorer, "_end_ids", frozenset({tokens[2]}))
    ended = scorer.score(ScoreTask(prompt(150), SpecPc(capacity=64, start_layer=0, lookahead_tokens=9)), Cancel())
    monkeypatch.undo()
    asked = scorer.score(ScoreTask(prompt(150), SpecPc(capacity=64, start_layer=0, lookahead_tokens=3)), Cancel())
    np.testing.assert_array_equal(ended.importance, asked.importance)


@pytest.mark.parametrize(
    ("policy_tokens", "wanted", "head_runs"), [(1, 0, 0), (1, 3, 3), (4, 0, 3), (4, 3, 3), (4, 6, 6)]
)
def test_the_head_runs_only_for_tokens_and_on_one_position(policy_tokens, wanted, head_runs, tiny_scorer, prompt):
    scorer, shapes = tiny_scorer("tinyq", 32), []
    hook = scorer._head.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    policy = SpecPc(capacity=64, start_layer=0, lookahead_tokens=policy_tokens)
    scored = scorer.score(ScoreTask(prompt(100), policy, wanted), Cancel())
    hook.remove()
    assert shapes == [(1, 1, 64)] * head_runs
    assert len(scored.lookahead_token_ids) == wanted


def test_the_services_lookahead_does_not_change_the_scores(tiny_scorer, prompt):
    few, many = (tiny_scorer().score(ScoreTask(prompt(100), POLICY, tokens), Cancel()) for tokens in (0, 9))
    np.testing.assert_array_equal(few.importance, many.importance)


def test_without_a_policy_nothing_is_scored(tiny_scorer, prompt):
    scored = tiny_scorer().score(ScoreTask(prompt(1), None, 2), Cancel())
    assert scored.importance is None
    assert scored.coverage_importance is None
    assert len(scored.lookahead_token_ids) == 2


def test_each_row_of_attention_sums_to_one(tiny_scorer, prompt):
    policy = SpecPc(capacity=64, window=5, start_layer=1, weighted_query=False)
    scored = tiny_scorer().score(ScoreTask(prompt(100), policy), Cancel())
    rows = 5 * 4 * 3  # window x heads x layers
    assert scored.coverage_importance.sum() == pytest.approx(rows, rel=1e-4)


@pytest.mark.parametrize("looks", [1, 2, 7, 8, 9])
def test_a_cancelled_call_stops_before_the_next_chunk_or_token(looks, tiny_scorer, prompt):
    cancel = CountingCancel(looks)
    with pytest.raises(Cancelled):
        tiny_scorer("tinyq", 16).score(ScoreTask(prompt(100), POLICY, 5), cancel)  # 7 chunks, 5 tokens
    assert cancel.looks == looks


def test_a_passed_deadline_stops_too(tiny_scorer, prompt):
    with pytest.raises(DeadlineExceeded):
        tiny_scorer().score(ScoreTask(prompt(100), POLICY), Cancel(Deadline(0.0)))


def test_layers_that_are_not_there_are_refused(tiny_scorer, prompt):
    with pytest.raises(InvalidRequest) as refusal:
        tiny_scorer().score(ScoreTask(prompt(100), SpecPc(capacity=64, start_layer=4)), Cancel())
    assert (refusal.value.field, refusal.value.value) == ("spec_pc.start_layer", 4)
    assert "< 4" in str(refusal.value.limit)


def test_bfloat16_is_close_to_float32(tiny_scorer, prompt):
    exact, rough = (
        tiny_scorer("tinyl", 64, dtype).score(ScoreTask(prompt(200), POLICY), Cancel()).importance
        for dtype in ("float32", "bfloat16")
    )
    assert rough.dtype == np.float32
    assert np.corrcoef(exact, rough)[0, 1] > 0.9


@pytest.mark.skipif(not computes_int8("cpu"), reason="the processor has no instructions for int8")
def test_int8_is_close_to_float32_and_alike_in_all_chunks(tiny_scorer, prompt, monkeypatch):
    monkeypatch.setattr(int8_linear, "LEAST_OUTPUTS", 1)
    exact, rough, other = (
        tiny_scorer("tinyl", chunk_tokens, dtype).score(ScoreTask(prompt(200), POLICY), Cancel()).importance
        for dtype, chunk_tokens in (("float32", 64), ("int8", 64), ("int8", 200))
    )
    assert np.corrcoef(exact, rough)[0, 1] > 0.95
    revision = tiny_scorer("tinyl", 64, "int8").info.revision
    assert revision.partition("-")[2] == f"int8-{native_dtype('cpu')}"
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, other, atol=1e-5)


@pytest.mark.skipif(not computes_int8("cpu"), reason="the processor has no instructions for int8")
def test_int8_leaves_embeddings_and_the_output_head(tiny_model, monkeypatch):
    monkeypatch.setattr(int8_linear, "LEAST_OUTPUTS", 1)
    scorer = TransformersScorer(resolve(str(tiny_model("tinyq"))), "int8")
    assert type(scorer._head) is torch.nn.Linear
    assert {each.dtype for each in scorer._model.parameters()} == {getattr(torch, native_dtype("cpu"))}
    assert any(isinstance(each, int8_linear.Int8Linear) for each in scorer._body.modules())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_int8_is_refused_where_it_would_be_wrong_or_slow(tiny_model, monkeypatch, device):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": device != "cpu"})
    with pytest.raises(InvalidRequest) as refusal:
        TransformersScorer(resolve(str(tiny_model("tinyl"))), "int8", device)
    assert (refusal.value.field, refusal.value.value) == ("dtype", "int8")
    assert device in str(refusal.value.limit)


def test_the_model_is_described(tiny_scorer):
    info = tiny_scorer("tinyl").info
    assert (info.id, info.layers, info.kv_heads, info.vocabulary_size) == ("tinyl", 4, 2, 512)
    assert (info.context_tokens, info.tokenizer_fingerprint) == (4096, "")
    weights, _, dtype = info.revision.partition("-")
    assert (len(weights), dtype) == (64, "float32")


def test_the_first_prompt_proves_that_rows_can_be_captured(tiny_scorer, monkeypatch):
    scorer = tiny_scorer()
    warm_up(scorer, Cancel())
    # a model that keeps its keyword arguments to itself would never show its attention
    monkeypatch.setattr("presift.draft.attention.RowCapture.observe", lambda *_: None)
    with pytest.raises(InvalidRequest, match="expected layers"):
        warm_up(scorer, Cancel())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model_type": "mistral", "layer_types": None, "sliding_window": 64},
            r"layers 0\.\.3 sliding_attention \(64 tokens\)",
        ),
        (
            {"layer_types": ["sliding_attention"] * 4, "sliding_window": 9, "max_window_layers": 0},
            r"layers 0\.\.3 sliding_attention \(9 tokens\)",
        ),
    ],
)
def test_unfit_models_are_refused_before_their_weights_are_read(changes, reason, tiny_model, tmp_path):
    config = json.loads((tiny_model("tinyq") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_sliding_window": True} | changes))
    (tmp_path / "model.safetensors").write_bytes((tiny_model("tinyq") / "model.safetensors").read_bytes())
    with pytest.raises(InvalidRequest, match=reason):
        TransformersScorer(resolve(str(tmp_path)))


def test_code_that_comes_with_a_model_is_not_run(tiny_model, tmp_path):
    config = json.loads((tiny_model("tinyq") / "config.json").read_text())
    remote = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config | remote))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "model.safetensors").write_bytes((tiny_model("tinyq") / "model.safetensors").read_bytes())
    with pytest.raises(InvalidRequest, match="without custom code"):
        TransformersScorer(resolve(str(tmp_path)))
    assert not (tmp_path / "ran").exists()
