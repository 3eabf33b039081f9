"""The data type of a device: what is chosen on processors with and without the instructions."""

from __future__ import annotations

import pytest
import torch

from presift.models.dtype import computes_int8, fastest_dtype, native_dtype


@pytest.fixture
def processor(monkeypatch):
    def has(*instructions: str) -> None:
        found = dict.fromkeys(("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"), False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found | dict.fromkeys(instructions, True))

    return has


@pytest.mark.parametrize(
    ("instructions", "native", "fastest"),
    [
        ((), "float32", "float32"),
        (("avx2",), "float32", "float32"),
        (("avx512_vnni",), "float32", "int8"),
        (("avx512_vnni", "avx512_bf16"), "bfloat16", "bfloat16"),
        (("amx_int8", "amx_bf16"), "bfloat16", "bfloat16"),
        (("bf16", "i8mm"), "bfloat16", "bfloat16"),  # ARM
    ],
)
def test_a_processor_computes_in_what_it_has_instructions_for(processor, instructions, native, fastest):
    processor(*instructions)
    assert (native_dtype("cpu"), fastest_dtype("cpu")) == (native, fastest)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "xpu"])
def test_other_devices_compute_in_bfloat16_whatever_the_processor_has(processor, device):
    processor("avx512_vnni")
    assert (native_dtype(device), fastest_dtype(device), computes_int8(device)) == ("bfloat16", "bfloat16", False)
