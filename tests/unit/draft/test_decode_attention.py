"""One new row of attention in groups of heads: what the stock function gives, and nothing else is changed."""

from types import SimpleNamespace

import pytest
import torch

from presift.core.policies import SpecPc
from presift.draft.decode_attention import with_grouped_rows
from presift.draft.scorer import Cancel, ScoreTask
from presift.models import torchvision_ops


@pytest.fixture
def stock():
    torchvision_ops.declare_missing()
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def _tensors(heads, kv_heads, rows, value_dim=8):
    torch.manual_seed(heads)
    return torch.randn(2, heads, rows, 8), torch.randn(2, kv_heads, 33, 8), torch.randn(2, kv_heads, 33, value_dim)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("value_dim", [8, 4])
def test_one_row_is_what_the_stock_function_gives(stock, heads, kv_heads, value_dim):
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=True)
    tensors = _tensors(heads, kv_heads, 1, value_dim)
    expected, _ = stock(module, *tensors, None, scaling=0.3)
    output, weights = with_grouped_rows(stock)(module, *tensors, None, scaling=0.3)
    assert (output.shape, weights) == ((2, 1, heads, value_dim), None)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(("rows", "masked"), [(2, False), (1, True)])
def test_several_rows_or_a_mask_are_left_to_the_stock_function(rows, masked):
    tensors = _tensors(4, 2, rows)
    mask = torch.ones(2, 1, rows, 33, dtype=torch.bool) if masked else None
    seen = []
    with_grouped_rows(lambda *args, **kwargs: seen.append((args, kwargs)))("module", *tensors, mask, dropout=0.0)
    (args, kwargs), *_ = seen
    assert [id(each) for each in args[1:]] == [id(each) for each in (*tensors, mask)]
    assert kwargs == {"dropout": 0.0}


def test_the_rows_of_a_generated_token_go_through_it(tiny_scorer, prompt, monkeypatch):
    shapes = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def recorded(query, key, *args, **kwargs):
        shapes.append((query.shape[1:3], key.shape[1]))
        return sdpa(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)

    tiny_scorer().score(ScoreTask(prompt(40), SpecPc(capacity=32, start_layer=0, lookahead_tokens=4)), Cancel())
    later = [(heads, kv_heads) for (heads, rows), kv_heads in shapes if rows != 40]
    assert later
    assert all(heads == kv_heads for heads, kv_heads in later)
