"""Linear layers in int8: how near they are to float32, and which layers become int8."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from presift.draft.int8_linear import Int8Linear, convert


def _relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).float().norm() / wanted.float().norm()).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_near_that_of_the_layer(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 320, bias=bias).to(dtype)
    inputs = torch.randn(2, 9, 128, dtype=dtype)
    output = Int8Linear(linear)(inputs)
    assert output.dtype == dtype
    assert output.shape == (2, 9, 320)
    assert _relative_error(output, linear(inputs)) < 0.02


def test_a_large_token_costs_the_others_no_precision() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 320)
    inputs = torch.randn(8, 128)
    inputs[0] *= 1e4
    errors = [
        _relative_error(found, wanted) for found, wanted in zip(Int8Linear(linear)(inputs), linear(inputs), strict=True)
    ]
    assert max(errors) < 0.02


def test_a_large_output_costs_the_others_no_precision() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 320)
    with torch.no_grad():
        linear.weight[0] *= 1e4
    inputs = torch.randn(8, 128)
    assert _relative_error(Int8Linear(linear)(inputs)[:, 1:], linear(inputs)[:, 1:]) < 0.02


def test_zeros_stay_zeros() -> None:
    linear = nn.Linear(128, 320, bias=False)
    assert not Int8Linear(linear)(torch.zeros(1, 3, 128)).any()
    with torch.no_grad():
        linear.weight.zero_()
    assert not Int8Linear(linear)(torch.randn(1, 3, 128)).any()


def test_small_layers_and_other_modules_stay() -> None:
    class Special(nn.Linear):
        pass

    inner = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 8))
    model = nn.Sequential(nn.Embedding(300, 300), inner, Special(300, 300))
    convert(model)
    assert isinstance(inner[0], Int8Linear)
    assert type(inner[1]) is nn.Linear
    assert type(model[2]) is Special
    assert type(model[0]) is nn.Embedding
