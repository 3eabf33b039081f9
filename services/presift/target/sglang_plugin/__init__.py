"""SpecKV as a plugin of SGLang (entry point group `sglang.srt.plugins`): compressed KV as entries of its radix cache.

It is loaded wherever presift is installed beside SGLang, so it does nothing unless PRESIFT_SGLANG_PLUGIN is set, and
importing this package imports neither torch nor SGLang.
"""

from __future__ import annotations

import os

SWITCH = "PRESIFT_SGLANG_PLUGIN"


def activate() -> None:
    """The entry point: register the hooks. SGLang applies them when all its plugins are loaded."""
    if os.environ.get(SWITCH) != "1":
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415 - only where it is switched on

    from presift.target.sglang_plugin.hooks import Plugin  # noqa: PLC0415

    for target, hook in Plugin().around().items():
        HookRegistry.register(target, hook, HookType.AROUND)
