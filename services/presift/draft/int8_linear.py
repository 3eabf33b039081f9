"""Linear layers in int8, for processors: about three times the speed of float32.

Weights have one scale per output, computed at the start; inputs have one scale per token, computed in each call. Sums
are exact int32. As in LLM.int8() (arXiv 2208.07339) without its outliers, and in ZeroQuant (arXiv 2206.01861).
"""

from __future__ import annotations

import torch
from torch import nn

# Smaller layers stay as they are: an expert router costs little, and its choice is sensitive.
LEAST_OUTPUTS = 256
_MOST = 127  # int8, symmetric


class Int8Linear(nn.Module):
    """`linear` with int8 weights. Input and output are float32 or bfloat16 [..., features], as before."""

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = _scales(weight)
        # Weights [in, out]: the layout in which the product is fastest.
        self.register_buffer("weight", (weight / scales).round_().to(torch.int8).t())
        self.register_buffer("scales", scales[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        scales = _scales(rows)
        product = torch._int_mm((rows / scales).round_().to(torch.int8), self.weight)
        output = product.float().mul_(scales).mul_(self.scales)
        if self.bias is not None:
            output.add_(self.bias)
        return output.to(inputs.dtype).view(*inputs.shape[:-1], -1)


def convert(module: nn.Module) -> None:
    """Replace the linear layers inside `module`, one after the other."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.out_features >= LEAST_OUTPUTS:
            setattr(module, name, Int8Linear(child))
        else:
            convert(child)


def _scales(values: torch.Tensor) -> torch.Tensor:
    """float32[rows, 1] that map each row of values[rows, columns] to -127..127."""
    return values.abs().amax(1, keepdim=True).float().clamp_(min=1e-12).div_(_MOST)
