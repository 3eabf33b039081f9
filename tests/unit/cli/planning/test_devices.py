"""Devices: what was measured here is what comes out for a CPU; the rest follows from the data sheets."""

import pytest

from presift.cli.planning.devices import DEVICES, Said, speeds_of
from presift.cli.planning.shapes import KNOWN
from presift.core.errors import InvalidRequest
from presift.orchestrator.routing.cost_model import TokenWork

DRAFT, TARGET, CPU = KNOWN["qwen2.5-0.5b"], KNOWN["qwen2.5-1.5b"], DEVICES["cpu"]
SPEEDS = speeds_of((DRAFT, CPU), (TARGET, CPU), Said())


MEASURED = [(SPEEDS.draft, 4096, 14.45), (SPEEDS.target, 4784, 48.5), (SPEEDS.target, 472, 3.6)]


@pytest.mark.parametrize(("curve", "tokens", "seconds"), MEASURED)
def test_a_cpu_does_what_the_log_says(curve, tokens, seconds):
    assert curve.ms(TokenWork(tokens)) / 1e3 == pytest.approx(seconds, rel=0.08)


def test_what_was_said_is_what_is_reckoned_with():
    speeds = speeds_of((DRAFT, CPU), (TARGET, CPU), Said(20_000.0, 8_192.0, 7.5))
    assert speeds.draft.ms(TokenWork(4096)) == pytest.approx(4096 / 20_000 * 1e3)
    assert speeds.target.ms(TokenWork(4096)) == pytest.approx(500)
    assert speeds.decoding.call_ms == 7.5
    # Attention still grows with the square.
    assert speeds.target.ms(TokenWork(16_384)) > 2_000


def test_a_gpu_by_hand():
    """H100: 445 TFLOPS and 2,010 GB/s are reckoned with, and 13.0 GFLOPs a token of the 7B's layers."""
    shape, h100 = KNOWN["qwen2.5-7b"], DEVICES["h100"]
    assert h100.curve(shape).token_ms == pytest.approx(2 * shape.layer_parameters / 445.05e12 * 1e3)
    assert h100.decoding(shape).call_ms == pytest.approx(shape.weight_bytes / 2_010e9 * 1e3)
    assert h100.decoding(shape).token_ms == pytest.approx(57_344 / 2_010e9 * 1e3)


def test_kv_fits_beside_the_weights():
    shape, l4 = KNOWN["qwen2.5-7b"], DEVICES["l4"]
    assert l4.kv_pool_tokens(shape) == int((24 * 2**30 - shape.weight_bytes) * 0.85 / 57_344)
    with pytest.raises(InvalidRequest, match=r"device is l4; .*more than 61 GiB for qwen2.5-32b"):
        l4.kv_pool_tokens(KNOWN["qwen2.5-32b"])


def test_every_estimate_says_that_it_is_one():
    assert [name for name, device in DEVICES.items() if "ESTIMATE" not in device.basis] == ["cpu"]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["draft_tokens_per_s", "target_tokens_per_s", "decode_step_ms"])
def test_speeds_that_cannot_be_are_refused(name, value):
    with pytest.raises(InvalidRequest, match=name):
        Said(**{name: value})
