"""Runs SGLang on a plain CPU, as an out-of-tree platform (entry point group `sglang.srt.platforms`).

SGLang's own CPU path needs a build of sgl_kernel that is not published. This platform needs only stock PyTorch. SGLang
loads it in every process wherever presift is installed, so `activate` does nothing unless torch is a CPU build on a
machine without an accelerator. Importing this module imports neither torch nor SGLang.
"""

from __future__ import annotations

import os


def activate() -> str | None:
    """The entry point: the path of the platform class, or None to leave the choice to SGLang."""
    if _is_sglangs_own_cpu_engine_chosen() or not _is_plain_cpu():
        return None
    return "presift.target.cpu.device.CpuPlatform"


def _is_sglangs_own_cpu_engine_chosen() -> bool:
    return os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"


def _is_plain_cpu() -> bool:
    import torch  # noqa: PLC0415 - SGLang loads the entry point early

    is_cpu_build = torch.version.cuda is None and torch.version.hip is None
    return is_cpu_build and not torch.accelerator.is_available()
