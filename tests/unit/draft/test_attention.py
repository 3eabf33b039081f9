"""The capture against attention worked out in full, and what is left behind when things go wrong: nothing."""

import threading

import numpy as np
import pytest
import torch

from presift.core.errors import InternalError
from presift.core.policies import Reduction, SpecPc
from presift.draft import attention, layer_attention
from presift.draft.layer_attention import LayerAttention
from presift.draft.layers import Layers
from presift.draft.scorer import Cancel, ScoreTask


def _naive(queries, keys, policy, n):
    """Every row of every layer at once. queries, keys: [layers, heads, T, d], keys already repeated for their heads."""
    total, d = queries.shape[2:]
    scores = queries @ keys.transpose(-1, -2) / d**0.5
    scores = scores.masked_fill(torch.ones(total, total, dtype=torch.bool).triu(1), -torch.inf)
    rows = scores.softmax(-1)[policy.start_layer :, :, n - policy.window :, :n]
    weights = torch.ones(rows.shape[2])
    if policy.weighted_query and policy.window > 1:
        weights[: policy.window] = torch.linspace(0, 1, policy.window)
    weighted = (rows * weights[:, None]).reshape(-1, n)
    return (weighted.amax(0) if policy.reduction is Reduction.MAX else weighted.sum(0)), weighted.sum(0)


def _capture(n, policy, layers, calibrated=None, *, stops=False):
    heads = attention.scored_heads(policy, Layers(layers, tuple(range(layers))), calibrated)
    return attention.RowCapture(n, policy, heads, torch.device("cpu"), stops=stops)


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("window", "lookahead"), [(1, 1), (5, 1), (5, 4), (40, 3)])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_of_grouped_heads_give_what_all_rows_at_once_give(reduction, weighted, window, lookahead, chunk):
    n, layers, kv_heads, group, d = 40, 3, 2, 3, 8
    total = n + lookahead - 1
    torch.manual_seed(total)
    queries, keys = torch.randn(layers, kv_heads * group, total, d), torch.randn(layers, kv_heads, total, d)
    policy = SpecPc(
        capacity=40,
        window=window,
        start_layer=1,
        reduction=reduction,
        weighted_query=weighted,
        lookahead_tokens=lookahead,
    )
    capture = _capture(n, policy, layers)
    ends = [*range(chunk, n, chunk), n, *range(n + 1, total + 1)]
    for start, end in zip([0, *ends], ends, strict=False):
        for layer in range(layers):
            capture.observe(layer, LayerAttention(queries[layer, None, :, start:end], keys[layer, None, :, :end]))
    importance, mass = capture.importance()
    expected = _naive(queries, keys.repeat_interleave(group, 1), policy, n)
    np.testing.assert_allclose(importance, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mass, expected[1], rtol=1e-5, atol=1e-6)


def test_rows_are_worked_out_in_blocks_with_the_same_result(monkeypatch):
    queries, keys = torch.randn(1, 4, 50, 8), torch.randn(1, 2, 50, 8)
    policy = SpecPc(capacity=40, window=33, start_layer=0)
    results = []
    for block_values in (2**23, 4 * 50 * 5, 1):
        monkeypatch.setattr(layer_attention, "BLOCK_VALUES", block_values)
        capture = _capture(50, policy, 1)
        capture.observe(0, LayerAttention(queries, keys))
        results.append(capture.importance()[0])
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], atol=1e-6)


def test_a_layer_that_was_not_seen_is_an_error_not_a_zero():
    capture = _capture(8, SpecPc(capacity=4, window=4, start_layer=0), 2)
    capture.observe(0, LayerAttention(torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)))
    with pytest.raises(InternalError, match="expected layers"):
        capture.importance()
    capture.observe(1, LayerAttention(torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)))
    assert capture.importance()[0].shape == (8,)


def test_the_output_of_capped_scores_with_sinks_is_the_eager_one_in_blocks(monkeypatch):
    """Of grouped heads, with a mask of the window; rows follow earlier keys."""
    heads, kv_heads, rows, keys, d = 4, 2, 9, 30, 8
    query, key, value = (
        torch.randn(1, count, n, d) for count, n in ((heads, rows), (kv_heads, keys), (kv_heads, keys))
    )
    sinks, mask = torch.randn(heads), torch.rand(1, 1, rows, keys) > 0.4
    scores = 2 * torch.tanh(0.7 * query @ key.repeat_interleave(2, 1).mT / 2)
    scores = scores.masked_fill(~mask, -torch.inf)
    column = sinks.view(1, -1, 1, 1).expand(1, heads, rows, 1)
    expected = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    monkeypatch.setattr(layer_attention, "BLOCK_VALUES", heads * keys * 4)
    for hidden in (mask, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)):
        found = LayerAttention(query, key, scaling=0.7, softcap=2.0, sinks=sinks, mask=hidden)
        for chosen in (None, (3, 1)):
            blocks = list(found.probabilities(keys - rows + 2, chosen))
            assert blocks[0][0] == 23
            got = torch.cat([block for _, block in blocks], 1)
            torch.testing.assert_close(got, expected[0, list(chosen or range(heads)), 2:])
        output = expected @ value.repeat_interleave(2, 1)
        torch.testing.assert_close(found.output(value), output.transpose(1, 2))


def test_an_error_inside_a_layer_leaves_nothing_behind(tiny_scorer, prompt):
    scorer, policy = tiny_scorer("tinyq", 32), SpecPc(capacity=64, start_layer=0, lookahead_tokens=3)
    task = ScoreTask(prompt(100), policy, lookahead_tokens=3)
    before = scorer.score(task, Cancel())
    layer = scorer._body.layers[2].mlp
    planted = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("planted")))
    with pytest.raises(RuntimeError, match="planted"):
        scorer.score(task, Cancel())
    planted.remove()
    after = scorer.score(task, Cancel())
    np.testing.assert_array_equal(before.importance, after.importance)
    assert before.lookahead_token_ids == after.lookahead_token_ids
    plain = scorer.score(ScoreTask(prompt(100)), Cancel())
    assert plain.importance is None


def test_other_models_in_the_process_keep_their_own_attention(tiny_scorer, tiny_model, prompt):
    tiny_scorer("tinyq")
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
    other = AutoModelForCausalLM.from_pretrained(tiny_model("tinyq"))
    assert other.config._attn_implementation == "sdpa"


def test_two_scorers_at_once_do_not_disturb_one_another(tiny_scorer, prompt):
    policy = SpecPc(capacity=64, start_layer=0, lookahead_tokens=4)
    tasks = {name: ScoreTask(prompt(n, n), policy, 4) for name, n in (("tinyq", 300), ("tinyl", 170))}
    expected = {name: tiny_scorer(name, 16).score(task, Cancel()) for name, task in tasks.items()}
    wrong = []

    def work(name):
        for _ in range(8):
            scored = tiny_scorer(name, 16).score(tasks[name], Cancel())
            if not np.array_equal(scored.importance, expected[name].importance):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("tinyq", "tinyl", "tinyq", "tinyl")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
