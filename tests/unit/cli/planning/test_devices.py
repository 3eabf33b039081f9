"""Devices: a CPU is as fast as measured, GPUs follow from their data sheets."""

import pytest

from presift.cli.planning.devices import DEVICES, MeasuredSpeeds, speeds_of
from presift.cli.planning.shapes import KNOWN
from presift.core.errors import InvalidRequest
from presift.orchestrator.routing.cost_model import TokenWork

DRAFT, TARGET, CPU = KNOWN["qwen2.5-0.5b"], KNOWN["qwen2.5-1.5b"], DEVICES["cpu"]
SPEEDS = speeds_of((DRAFT, CPU), (TARGET, CPU), MeasuredSpeeds())


MEASURED = [(SPEEDS.draft, 4096, 14.45), (SPEEDS.target, 4784, 48.5), (SPEEDS.target, 472, 3.6)]


@pytest.mark.parametrize(("curve", "tokens", "seconds"), MEASURED)
def test_a_cpu_is_as_fast_as_measured(curve, tokens, seconds):
    assert curve.ms(TokenWork(tokens)) / 1e3 == pytest.approx(seconds, rel=0.08)


def test_measured_speeds_replace_those_of_the_device():
    speeds = speeds_of((DRAFT, CPU), (TARGET, CPU), MeasuredSpeeds(20_000.0, 8_192.0, 7.5))
    assert speeds.draft.ms(TokenWork(4096)) == pytest.approx(4096 / 20_000 * 1e3)
    assert speeds.target.ms(TokenWork(4096)) == pytest.approx(500)
    assert speeds.decoding.call_ms == 7.5
    # Attention still grows with the square.
    assert speeds.target.ms(TokenWork(16_384)) > 2_000


def test_a_gpu_by_hand():
    """H100: 445 TFLOPS and 2,010 GB/s are assumed, and 13.0 GFLOPs per token of the 7B's layers."""
    shape, h100 = KNOWN["qwen2.5-7b"], DEVICES["h100"]
    assert h100.curve(shape).token_ms == pytest.approx(2 * shape.layer_parameters / 445.05e12 * 1e3)
    assert h100.decoding(shape).call_ms == pytest.approx(shape.weight_bytes / 2_010e9 * 1e3)
    assert h100.decoding(shape).token_ms == pytest.approx(57_344 / 2_010e9 * 1e3)


def test_kv_fits_next_to_the_weights():
    shape, l4 = KNOWN["qwen2.5-7b"], DEVICES["l4"]
    assert l4.kv_pool_tokens(shape) == int((24 * 2**30 - shape.weight_bytes) * 0.85 / 57_344)
    with pytest.raises(InvalidRequest, match=r"device is l4; .*more than 61 GiB for qwen2.5-32b"):
        l4.kv_pool_tokens(KNOWN["qwen2.5-32b"])


def test_every_estimate_is_marked():
    assert [name for name, device in DEVICES.items() if "ESTIMATE" not in device.basis] == ["cpu"]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["draft_tokens_per_s", "target_tokens_per_s", "decode_step_ms"])
def test_impossible_speeds_are_refused(name, value):
    with pytest.raises(InvalidRequest, match=name):
        MeasuredSpeeds(**{name: value})
