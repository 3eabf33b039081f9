"""What the processes of an engine import. `forked_engines` preloads it in the process that they fork from."""

from importlib import import_module

from presift.models.torchvision_ops import declare_missing

declare_missing()
for _module in (
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.scheduler",
    "presift.target.cpu.attention",
    "presift.target.sglang.seeds",
    "presift.target.sglang_plugin.hooks",
):
    import_module(_module)
