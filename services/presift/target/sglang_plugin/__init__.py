"""SpecKV as an SGLang plugin (entry point group `sglang.srt.plugins`): compressed KV as entries of the radix cache.

SGLang loads the plugin wherever presift is installed, so it does nothing unless PRESIFT_SGLANG_PLUGIN is 1. Importing
this package imports neither torch nor SGLang.
"""

from __future__ import annotations

import os

SWITCH = "PRESIFT_SGLANG_PLUGIN"


def activate() -> None:
    """The entry point: register the hooks. SGLang applies them after it has loaded all plugins."""
    if os.environ.get(SWITCH) != "1":
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415 - only where it is switched on

    from presift.target.sglang_plugin.hooks import Plugin  # noqa: PLC0415
    from presift.target.sglang_plugin.sglang_names import installed  # noqa: PLC0415

    for target, hook in Plugin(installed()).hooks().items():
        HookRegistry.register(target, hook, HookType.AROUND)
