"""SGLang on a plain CPU, through its out-of-tree platform door (entry point group `sglang.srt.platforms`).

SGLang's own CPU path needs a build of sgl_kernel that is not published. This platform needs stock PyTorch alone. It is
loaded wherever presift is installed beside SGLang, in every process of the engine, so `activate` steps aside unless
torch is a CPU build on a machine without an accelerator, and importing this module imports neither torch nor SGLang.
"""

from __future__ import annotations

import os


def activate() -> str | None:
    """The entry point: the platform class to use, or None where it does not apply (SGLang then goes on as usual)."""
    if _is_sglangs_own_cpu_engine_chosen() or not _is_plain_cpu():
        return None
    return "presift.target.cpu.device.CpuPlatform"


def _is_sglangs_own_cpu_engine_chosen() -> bool:
    return os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"


def _is_plain_cpu() -> bool:
    import torch  # noqa: PLC0415 - the entry point is loaded early; torch only when it is asked

    is_cpu_build = torch.version.cuda is None and torch.version.hip is None
    return is_cpu_build and not torch.accelerator.is_available()
