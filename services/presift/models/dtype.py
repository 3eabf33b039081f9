"""The data types that a device computes in fast, by the instructions that its processor has."""

from __future__ import annotations

from collections.abc import Iterable

# Names of torch.cpu.get_capabilities, on x86 and ARM.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
# Without them int8 sums may saturate on x86. ARM was not measured.
_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")


def native_dtype(device: str) -> str:
    """bfloat16; float32 on a processor without instructions for it, where bfloat16 takes several times as long."""
    return "bfloat16" if not _is_processor(device) or _has_any(_BFLOAT16) else "float32"


def fastest_dtype(device: str) -> str:
    """int8 on a processor that has instructions for it and none for bfloat16, else the native type.

    Where bfloat16 is native, int8 was not measured.
    """
    native = native_dtype(device)
    return "int8" if native == "float32" and computes_int8(device) else native


def computes_int8(device: str) -> bool:
    """Whether `device` is a processor with instructions for int8 products."""
    return _is_processor(device) and _has_any(_INT8)


def _is_processor(device: str) -> bool:
    return device.partition(":")[0] == "cpu"


def _has_any(instructions: Iterable[str]) -> bool:
    # Imported here so that `--help` is fast.
    import torch  # noqa: PLC0415

    found = torch.cpu.get_capabilities()
    return any(found.get(each) for each in instructions)
