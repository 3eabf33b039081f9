"""Devices: the cost curves, as AUTO uses them for predictions, of a model of a given shape on a device. Pure.

Reading a prompt is bound by arithmetic: 2 operations per parameter and token, and 4 x layers x heads x head width per
attended pair. A decode step is bound by memory: it reads all weights and each request's KV once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from presift.cli.planning.shapes import Shape
from presift.core.errors import InvalidRequest
from presift.orchestrator.routing.cost_model import CostCurve, StageCosts, TokenWork, selection_guess

# Measured tokens per second are those of a prompt of this length.
MEASURED_AT = TokenWork(4096)
# The share of the memory next to the weights that the KV pool gets; activations and the runtime take the rest.
_KV_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Device:
    """Achieved rates per second: operations in matrices and in attention, bytes of weights and of KV that are read.
    `call_ms`: the overhead of a call; `basis`: the source of the numbers, in words."""

    name: str
    matrix_flops: float
    attention_flops: float
    weight_bytes_s: float
    kv_bytes_s: float
    memory_bytes: int
    call_ms: float
    basis: str

    def curve(self, shape: Shape) -> CostCurve:
        """The cost of reading a prompt, and of the steps that generate tokens after it."""
        pair_flops = 4.0 * shape.layers * shape.heads * shape.head_width
        return CostCurve(
            call_ms=self.call_ms,
            token_ms=2.0 * shape.layer_parameters / self.matrix_flops * 1e3,
            megapair_ms=pair_flops * 1e6 / self.attention_flops * 1e3,
            step_ms=shape.weight_bytes / self.weight_bytes_s * 1e3,
        )

    def decoding(self, shape: Shape) -> CostCurve:
        """The cost of one decode step, with the KV tokens held as its tokens."""
        step_ms = shape.weight_bytes / self.weight_bytes_s * 1e3
        return CostCurve(call_ms=step_ms, token_ms=shape.kv_bytes / self.kv_bytes_s * 1e3, megapair_ms=0.0)

    def kv_pool_tokens(self, shape: Shape) -> int:
        """KV tokens that fit next to the weights. Raises InvalidRequest if the weights alone do not fit."""
        free = self.memory_bytes - shape.weight_bytes
        if free <= 0:
            has, needs = self.memory_bytes / 2**30, shape.weight_bytes / 2**30
            limit = f"a device with more than {needs:.0f} GiB for {shape.name} (this one has {has:.0f} GiB)"
            raise InvalidRequest("device", self.name, limit)
        return int(free * _KV_SHARE / shape.kv_bytes)


_MEASURED = "measured with the demo pair on two cores (tests/bench/LOG.md)"
_ESTIMATE = "ESTIMATE from the data sheet, not measured: 45 % of its dense bf16 arithmetic, 60 % of its bandwidth"


def _gpu(name: str, teraflops: float, gigabytes_s: float, gib: int) -> Device:
    flops, bytes_s = 0.45 * teraflops * 1e12, 0.6 * gigabytes_s * 1e9
    return Device(name, flops, flops, bytes_s, bytes_s, gib * 2**30, 5.0, _ESTIMATE)


DEVICES = {
    device.name: device
    for device in (
        # LOG.md: 4,096 tokens scored by the 0.5B in 14.45 s, 4,784 read by the 1.5B in 48.5 s and 472 in 3.6 s; decode
        # steps of a small model: 27.9, 36.8 and 91.7 ms with 257, 4,096 and 16,384 tokens held.
        Device("cpu", 350e9, 130e9, 20e9, 2.3e9, 24 * 2**30, 20.0, _MEASURED),
        _gpu("l4", 121, 300, 24),
        _gpu("l40s", 362, 864, 48),
        _gpu("a100", 312, 2_039, 80),
        _gpu("h100", 989, 3_350, 80),
        _gpu("h200", 989, 4_800, 141),
    )
}


@dataclass(frozen=True, slots=True)
class MeasuredSpeeds:
    """Speeds that the user measured: tokens per second over a prompt of 4,096 tokens, milliseconds of a decode step of
    one request. None: use the device's. Raises InvalidRequest."""

    draft_tokens_per_s: float | None = None
    target_tokens_per_s: float | None = None
    decode_step_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("draft_tokens_per_s", "target_tokens_per_s", "decode_step_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise InvalidRequest(name, value, "above 0 and below 1e9")


def device_of(field: str, name: str) -> Device:
    """The device of that name. Raises InvalidRequest, naming `field`."""
    if name not in DEVICES:
        raise InvalidRequest(field, name, f"one of {', '.join(DEVICES)}")
    return DEVICES[name]


def speeds_of(draft: tuple[Shape, Device], target: tuple[Shape, Device], measured: MeasuredSpeeds) -> StageCosts:
    """The cost curves of a pair; a measured speed changes the scale of a curve and keeps its shape."""
    drafting = _scaled_to(draft[1].curve(draft[0]), measured.draft_tokens_per_s)
    reading = replace(_scaled_to(target[1].curve(target[0]), measured.target_tokens_per_s), step_ms=0.0)
    decoding = target[1].decoding(target[0])
    if measured.decode_step_ms is not None:
        decoding = replace(decoding, call_ms=measured.decode_step_ms)
    return StageCosts(drafting, reading, selection_guess(reading), decoding)


def _scaled_to(curve: CostCurve, tokens_per_s: float | None) -> CostCurve:
    if tokens_per_s is None:
        return curve
    return curve.scaled(MEASURED_AT.new_tokens / tokens_per_s * 1e3 / curve.ms(MEASURED_AT))
